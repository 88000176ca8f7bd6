"""Recipes that are to be found: what is searched, what was tried, and the team with what was found in its place.

`DIR/searches/SIGNATURE/search.json` is the truth of what is done; whoever runs trials (`tuning.py`) goes on from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator import plan
from orchestrator.team import Team
from workers.data import Store
from workers.errors import ConclaveError
from workers.files import write_json
from workers.job import Job, derive_seed
from workers.space import Choice, SearchSpec
from workers.spec import MemberSpec

ENDED = ("done", "stopped", "failed")  # by itself; early, because others were better; with an error
Point = Mapping[str, float]  # of an epoch: loss and accuracy on the rows set apart, seconds


@dataclass
class Trial:
    """One choice, and how far it came."""

    choice: Choice
    state: str = "running"
    epochs: list[Point] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def rank(self) -> tuple[int, float]:
        """The more epochs, then the lower the loss at the end, the better: losses of fewer epochs don't compare."""
        return -len(self.epochs), self.epochs[-1]["loss"]


@dataclass
class Search:
    """All trials of one search."""

    team: Team
    member: MemberSpec  # the first of those that it finds
    store: Store
    home: Path
    import_paths: tuple[str, ...]
    trials: dict[str, Trial] = field(default_factory=dict)  # by name

    def __post_init__(self) -> None:
        self.read()

    def read(self) -> None:
        """What is on disk; failed trials count as not tried, where too few others came to an end: what failed may be mended."""
        if not self.file.is_file():
            return
        known = json.loads(self.file.read_text(encoding="utf-8"))
        self.trials = {name: Trial(**trial) for name, trial in known["trials"].items()}
        if not self.left and len(self._whole) < self.space.keep:
            self.trials = {name: trial for name, trial in self.trials.items() if trial.state != "failed"}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Only one process searches at a time, as others left it. Raises ConclaveError where another does."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.file.parent / ".lock", timeout=0):
                self.read()
                yield
        except Timeout:
            raise ConclaveError(
                f"search of {self.label}: another sweep is at it. Wait for it and run again: what it finds is found."
            ) from None

    @property
    def space(self) -> SearchSpec:
        assert self.member.search
        return self.member.search

    @property
    def epochs(self) -> int:
        return self.space.epochs or self.team.train.epochs

    @cached_property
    def signature(self) -> str:
        """Of what is tried on which data: not of a member's seed, nor of how many are kept."""
        space = self.space.model_copy(update={"keep": 1})
        asked = self.member.model_copy(update={"seed": 0, "pick": 1, "search": space})
        return plan.signature(self.team, self.store, asked, None, self.import_paths)

    @property
    def file(self) -> Path:
        return self.home / "searches" / self.signature / "search.json"

    @property
    def label(self) -> str:
        return self.member.name.removesuffix("-1") if self.space.keep > 1 else self.member.name

    def job(self, choice: Choice) -> Job:
        """A trial as a job; its signature is its name, and its home the search's own folder."""
        train = self.team.train.model_copy(update={"epochs": self.epochs, "stop": None, "fold_epochs": 1.0})
        name = hashlib.sha256(json.dumps([self.signature, choice], sort_keys=True).encode()).hexdigest()[:20]
        member = self.member.chosen(choice).model_copy(update={"seed": derive_seed(self.signature, "trial")})
        return Job(
            signature=name,
            member=member,
            fold=None,
            train=train,
            data=self.team.data,
            team_seed=self.team.seed,
            home=self.file.parent.absolute(),
            store=self.store.folder.absolute(),
            import_paths=self.import_paths,
        )

    def add(self, choice: Choice) -> str:
        """A trial begins, or goes on; gives its name."""
        name = self.job(choice).signature
        self.trials[name] = Trial(choice)
        self.save()
        return name

    def save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        trials = {n: {"choice": t.choice, "state": t.state, "epochs": list(t.epochs)} for n, t in self.trials.items()}
        write_json(self.file, {"member": self.label, "space": self.space.model_dump(mode="json"), "trials": trials})

    @property
    def left(self) -> int:
        """How many trials have still to come to an end."""
        return max(0, self.space.trials - sum(trial.ended for trial in self.trials.values()))

    @property
    def seconds(self) -> float:
        """Of all trials' training."""
        return sum(point["seconds"] for trial in self.trials.values() for point in trial.epochs)

    def best(self) -> list[Choice]:
        """The choices to keep, the best first. Raises ConclaveError where too few trials came to an end."""
        ended = sorted(self._whole, key=lambda t: t.rank)
        if len(ended) < self.space.keep:
            raise ConclaveError(
                f"search of {self.label}: {len(ended)} of {len(self.trials)} trials came to an end without an error, and "
                f"{self.space.keep} are to be kept. Run again: those that failed are tried again."
            )
        return [trial.choice for trial in ended[: self.space.keep]]

    @property
    def _whole(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.epochs and trial.state in ("done", "stopped")]


def searches(team: Team, store: Store, home: Path, import_paths: tuple[str, ...] = ()) -> dict[str, Search]:
    """What has to be found, by signature, in the team's order."""
    found: dict[str, Search] = {}
    for member in team.members:
        if member.search and member.pick == 1:
            one = Search(team, member, store, home, import_paths)
            found.setdefault(one.signature, one)
    return found


def resolved(team: Team, store: Store, home: Path, import_paths: tuple[str, ...], run: Callable[[Search], None]) -> Found:
    """The team with what was found in the place of what was to be found; `run` sees to searches that are not done."""
    made = searches(team, store, home, import_paths)
    for one in made.values():
        if one.left:
            with one.held():
                if one.left:
                    run(one)
    of: dict[str, Search] = {}
    for member in team.members:
        if member.search:
            first = member.model_copy(update={"pick": 1})
            of[member.name] = made[Search(team, first, store, home, import_paths).signature]
    members = [m.chosen(of[m.name].best()[m.pick - 1]) if m.search else m for m in team.members]
    share = {name: one.seconds / one.space.keep for name, one in of.items()}
    return Found(team.model_copy(update={"members": tuple(members)}), list(made.values()), share)


@dataclass(frozen=True)
class Found:
    """A team whose recipes are all there. `seconds`: each found member's share of what its search took."""

    team: Team
    searches: list[Search]
    seconds: Mapping[str, float]


def as_far_as_known(team: Team, store: Store, home: Path, import_paths: tuple[str, ...]) -> Found:
    """For looking only: the team with what was found, or the searches that are not done."""
    undone = [one for one in searches(team, store, home, import_paths).values() if one.left]
    return Found(team, undone, {}) if undone else resolved(team, store, home, import_paths, nothing)


def nothing(search: Search) -> None:
    """Every search is done."""


def described(choice: Choice) -> str:
    return ", ".join(f"{key} {value if isinstance(value, str) else format(value, 'g')}" for key, value in choice.items())
