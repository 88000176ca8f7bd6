"""Describe a team as it is resolved: members expanded, merged with the defaults and seeded. Frozen and strict; knows no files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fusion.methods.names import DEFAULT, STACKS, Fusion
from orchestrator.config.rules import problems_of
from workers.config.resources import Resources
from workers.config.specs import DataSpec, MemberSpec, StudentSpec, TrainSpec
from workers.config.strict import Name, Strict
from workers.errors import UserInputError


def _at_least_one(value: Any) -> Any:
    if value == ():
        raise ValueError("a team needs at least one member")
    return value


class TrackingSpec(Strict):
    """Where a sweep is tracked.

    Attributes:
        uri: The tracking store; the home's where left out.
        experiment: Name of the experiment; the team's where left out.
        required: Whether a store that is away stops the sweep. Otherwise the sweep is tracked in the home.
    """

    uri: str | None = None
    experiment: str | None = None
    required: bool = True  # false: where the server is away, track in the home and say so


class Retries(Strict):
    """How often a training is tried again, by cause; None is without limit.

    Attributes:
        errors: For any other error.
        preemptions: For machines that were drained or lost.
        oom: For trainings that were killed for the machine's memory.
    """

    errors: int | None = Field(3, ge=0)
    preemptions: int | None = Field(None, ge=0)  # drained and lost nodes
    oom: int | None = Field(2, ge=0)  # killed for the node's memory

    def allows(self, cause: str, times: int) -> bool:
        """Return whether a training that failed `times` times for this cause is tried again."""
        limit = {"errors": self.errors, "preemptions": self.preemptions, "oom": self.oom}[cause]
        return limit is None or times <= limit


def _errors(value: Any) -> Any:
    """Let `2` stand for `{errors: 2}`."""
    return {"errors": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Checkpoint(Strict):
    """A training writes a checkpoint after an epoch, and within an epoch every so many minutes."""

    minutes: float = Field(5, gt=0)


class HeartbeatSpec(Strict):
    """A trainer that gives no sign of life for `seconds`, or finishes no step for `stall_minutes`, is ended and retried."""

    seconds: float = Field(60, gt=0)
    stall_minutes: float = Field(30, gt=0)


class Budget(Strict):
    """A limit. Once it is used up no new training starts; those that run end, and what there is is fused.

    Attributes:
        max_hours: Hours of one run of the command.
        max_cost: Cost of all runs together, in the unit of `prices`.
        price: Which of `prices` counts; needed where there are several.
    """

    max_hours: float | None = Field(None, gt=0)  # by the clock, of one run of the command
    max_cost: float | None = Field(None, gt=0)  # of all runs together, in the unit of `prices`
    price: Name | None = None  # which of `prices` counts; needed where there are several


class OwnServer(Strict):
    """A machine of one's own, whose trainers cost what its purchase comes to by amortisation.

    Attributes:
        price: What it cost.
        years: How long it is used.
        use: Share of the hours in which it works.
        trainers: Number of trainers at once.
    """

    price: float = Field(gt=0)
    years: float = Field(3, gt=0)
    use: float = Field(0.3, gt=0, le=1)  # share of the hours in which it works
    trainers: float = Field(1, gt=0)  # at once

    @property
    def trainer_hour_price(self) -> float:
        """The price of one trainer for an hour."""
        return self.price / (self.years * 365.25 * 24 * self.use * self.trainers)


class Team(Strict):
    """A whole team, resolved: members are expanded, merged with the defaults, and seeded."""

    version: Literal[1] = 1
    name: Name
    seed: int = Field(0, ge=0, lt=2**32)
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    members: Annotated[tuple[MemberSpec, ...], BeforeValidator(_at_least_one)]
    fusion: tuple[Fusion, ...] = Field(DEFAULT, min_length=1)
    student: StudentSpec | None = None  # there where `fusion` asks for one
    resources: Resources = Resources()
    tracking: TrackingSpec = TrackingSpec()
    quorum: int = Field(2, ge=1)
    prices: dict[Name, Annotated[float, Field(ge=0)] | OwnServer] = Field({})
    budget: Budget = Budget()
    retries: Annotated[Retries, BeforeValidator(_errors)] = Retries()
    checkpoint: Checkpoint = Checkpoint()
    heartbeat: HeartbeatSpec = HeartbeatSpec()
    environment: Literal["strict", "warn"] | None = None  # of machines with other versions; left out: strict on a cluster

    @property
    def hourly(self) -> dict[str, float]:
        """The price of one trainer for an hour, by kind of machine."""
        return {name: price.trainer_hour_price if isinstance(price, OwnServer) else price for name, price in self.prices.items()}

    @property
    def trainer_hour_price(self) -> float:
        """The price of one trainer for an hour that `budget.max_cost` counts by."""
        return self.hourly[self.budget.price or next(iter(self.hourly))]

    @property
    def recipes(self) -> tuple[MemberSpec, ...]:
        """The members, and the student where there is one."""
        return (*self.members, *([self.student] if self.student else []))

    def check_names(self, option: str, names: Iterable[str]) -> None:
        """Raise UserInputError where a name is neither a member's nor the student's; `option` is for the message."""
        known_names = [member.name for member in self.recipes]
        for name in set(names) - set(known_names):
            raise UserInputError(f"{option} {name}: no such member; there are {', '.join(known_names)}.")

    @property
    def folds(self) -> int:
        """The number of fold trainings of each member: none where no fusion learns from them."""
        return self.data.folds if set(STACKS) & set(self.fusion) else 0

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if problem := next(problems_of(self), None):
            raise ValueError(problem)
        return self
