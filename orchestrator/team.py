"""The team as resolved: members expanded, merged with the defaults and seeded. Frozen and strict; knows no files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fusion.names import DEFAULT, KNOWN, STACKS, Fusion
from workers.errors import Rejected
from workers.resources import Resources
from workers.spec import DataSpec, MemberSpec, StudentSpec, TrainSpec
from workers.strict import Name, Strict


def _somebody(value: Any) -> Any:
    if value == ():
        raise ValueError("a team needs at least one member")
    return value


class Tracking(Strict):
    uri: str | None = None
    experiment: str | None = None
    required: bool = True  # false: where the server is away, track in the home and say so


class Retries(Strict):
    """How often a fit is tried again, by cause; null is without limit."""

    errors: int | None = Field(3, ge=0)
    preemptions: int | None = Field(None, ge=0)  # drained and lost nodes
    oom: int | None = Field(2, ge=0)  # killed for the node's memory

    def allows(self, cause: str, times: int) -> bool:
        """Whether a fit that failed `times` times for this cause is tried again."""
        limit = {"errors": self.errors, "preemptions": self.preemptions, "oom": self.oom}[cause]
        return limit is None or times <= limit


def _errors(value: Any) -> Any:
    """`2` stands for `{errors: 2}`."""
    return {"errors": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Checkpoint(Strict):
    """A fit writes a checkpoint after every epoch, and within an epoch every so many minutes."""

    minutes: float = Field(5, gt=0)


class Heartbeat(Strict):
    """A trainer that gives no sign of life for `seconds`, or finishes no step for `stall_minutes`, is ended and retried."""

    seconds: float = Field(60, gt=0)
    stall_minutes: float = Field(30, gt=0)


class Budget(Strict):
    """Where it is used up, no new fit starts; those that run end, and what there is is fused."""

    max_hours: float | None = Field(None, gt=0)  # by the clock, of one run of the command
    max_cost: float | None = Field(None, gt=0)  # of all runs together, in the unit of `prices`
    price: Name | None = None  # which of `prices` counts; needed where there are several


class OwnServer(Strict):
    """A machine of one's own: what an hour of one of its trainers costs, by amortisation."""

    price: float = Field(gt=0)
    years: float = Field(3, gt=0)
    use: float = Field(0.3, gt=0, le=1)  # share of the hours in which it works
    trainers: float = Field(1, gt=0)  # at once

    @property
    def hour(self) -> float:
        return self.price / (self.years * 365.25 * 24 * self.use * self.trainers)


class Team(Strict):
    """A whole team, resolved: members are expanded, merged with the defaults, and seeded."""

    version: Literal[1] = 1
    name: Name
    seed: int = Field(0, ge=0, lt=2**32)
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    members: Annotated[tuple[MemberSpec, ...], BeforeValidator(_somebody)]
    fusion: tuple[Fusion, ...] = Field(DEFAULT, min_length=1)
    student: StudentSpec | None = None  # there where `fusion` asks for one
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    quorum: int = Field(2, ge=1)
    prices: dict[Name, Annotated[float, Field(ge=0)] | OwnServer] = Field({})
    budget: Budget = Budget()
    retries: Annotated[Retries, BeforeValidator(_errors)] = Retries()
    checkpoint: Checkpoint = Checkpoint()
    heartbeat: Heartbeat = Heartbeat()
    environment: Literal["strict", "warn"] | None = None  # of machines with other versions; left out: strict on a cluster

    @property
    def hourly(self) -> dict[str, float]:
        """The price of one trainer for an hour, by kind of machine."""
        return {name: price.hour if isinstance(price, OwnServer) else price for name, price in self.prices.items()}

    @property
    def hour(self) -> float:
        """The price of one trainer for an hour that `budget.max_cost` counts by."""
        return self.hourly[self.budget.price or next(iter(self.hourly))]

    @property
    def recipes(self) -> tuple[MemberSpec, ...]:
        """The members, and the student where there is one."""
        return (*self.members, *([self.student] if self.student else []))

    def check_names(self, option: str, names: Iterable[str]) -> None:
        """Raises Rejected where one of them is no member, nor the student."""
        known = [member.name for member in self.recipes]
        for name in set(names) - set(known):
            raise Rejected(f"{option} {name}: no such member; there are {', '.join(known)}.")

    @property
    def folds(self) -> int:
        """How many fold fits each member makes: none where no fusion learns from them."""
        return self.data.folds if set(STACKS) & set(self.fusion) else 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.folds == 1:
            raise ValueError("data.folds is 0 (no fold fits) or at least 2")
        if len(set(self.fusion)) < len(self.fusion):
            raise ValueError("fusion names a method twice")
        if self.budget.max_cost and not self.prices:
            raise ValueError("budget.max_cost needs `prices:`, what a trainer costs an hour, like {spot: 0.16}")
        if self.budget.max_cost and self.budget.price is None and len(self.prices) > 1:
            raise ValueError(f"budget.price: say which price counts: {', '.join(self.prices)}")
        if self.budget.price is not None and self.budget.price not in self.prices:
            known = ", ".join(self.prices) or "there are none"
            raise ValueError(f"budget.price: {self.budget.price} is none of `prices`: {known}")
        if "stack_bag" in self.fusion and not self.data.folds:
            raise ValueError("fusion: stack_bag is a bag of fold fits: set data.folds to 2 or more")
        if self.student and "student" not in self.fusion:
            raise ValueError("student: is described, and `fusion:` doesn't ask for it: add student there")
        if self.student and self.student.snapshots > 1:
            raise ValueError("student: snapshots are for members; a student is one network")
        if self.student and self.student.start is not None:
            self._check_start(self.student, self.student.start)
        for member in self.members:
            if member.name in KNOWN:
                raise ValueError(f"member {member.name}: that is a fusion's name; give the member another one")
            if member.cycle > member.snapshots:
                raise ValueError(f"member {member.name}: cycle {member.cycle} of {member.snapshots} snapshots")
            if member.snapshots > (least := min(self.train.of_fold(fold).epochs for fold in (None, 0))):
                raise ValueError(f"member {member.name}: {member.snapshots} snapshots need as many epochs; a fit has {least}")
            if member.cycles and member.snapshots == 1:
                raise ValueError(f"member {member.name}: cycles are those of snapshots: set snapshots to 2 or more")
            if 0 in (lengths := member.cycle_lengths(least)):
                raise ValueError(f"member {member.name}: cycles of {lengths} epochs: none may be empty; change cycles.first")
            if member.average and (member.snapshots > 1 or self.train.stop or self.train.ema):
                raise ValueError(f"member {member.name}: average doesn't go together with snapshots, train.stop or train.ema")
            if self.train.batch_size < 2 * (processes := member.resources.processes):
                why = f"train.batch_size {self.train.batch_size} gives each less than two images"
                raise ValueError(f"member {member.name}: {processes} processes train together, and {why}")
            if member.search and (member.snapshots > 1 or member.average or member.resources.processes > 1):
                raise ValueError(f"member {member.name}: search finds recipes of one process, without snapshots and average")
            if member.packed and (hindrances := self._unpackable(member)):
                raise ValueError(f"member {member.name}: packed doesn't go together with {hindrances}")
            if member.pick > (member.search.keep if member.search else 1):
                raise ValueError(f"member {member.name}: pick {member.pick} of fewer that are kept")
            if member.averaged and not member.average:
                raise ValueError(f"member {member.name}: averaged without saying how: set average to swa or ema")
            if member.snapshots > 1 and self.train.stop:
                raise ValueError(f"member {member.name}: snapshots and train.stop don't go together: a cycle runs to its end")
        if self.data.dataset == "folder" and self.data.root is None:
            raise ValueError("data.root is needed with `dataset: folder`: the folder or archive of images")
        return self

    def _unpackable(self, member: MemberSpec) -> str:
        """What of the team's and the member's settings a pack can't do, in words."""
        hindrances = {
            "snapshots": member.snapshots > 1,
            "average": member.average is not None,
            "search": member.search is not None,
            "several processes a member": member.resources.processes > 1,
            "train.ema": self.train.ema is not None,
            "train.stop": self.train.stop is not None,
            "train.clip": self.train.clip is not None,
            "train.compile": self.train.compile is not None,
        }
        return ", ".join(name for name, there in hindrances.items() if there)

    def _check_start(self, student: StudentSpec, start: str) -> None:
        member = next((member for member in self.members if member.name == start), None)
        if member is None:
            raise ValueError(f"student.start: {start} is no member; there are {', '.join(m.name for m in self.members)}")
        if (member.arch, member.width, member.stem) != (student.arch, student.width, student.stem):
            raise ValueError(f"student.start: {start} is another network (arch, width and stem have to be the student's)")
