"""Describe a resolved team: trainings expanded, merged with the defaults and seeded. Independent of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Literal

from fusion.interface import FUSIONS
from fusion.results import Metric
from orchestrator.config.settings import Budget, Checkpoint, HeartbeatSpec, Retries, TrackingSpec
from workers.config.specs import DataSpec, MemberRecord, MemberSpec, StudentSpec, TrainSpec
from workers.config.strict import Strict
from workers.errors import UserInputError


class Team(Strict):
    """A whole team, resolved.

    Attributes:
        name: The team's name.
        seed: Seed of the split.
        data: The data set and its splits.
        train: What all trainings share.
        trainings: The recipes; each makes one or more members.
        fusion: The fusions to fit.
        student: The student's recipe, if `fusion` uses a student.
        tracking: Where the sweep is tracked.
        metric: Metric by which fusions are judged.
        quorum: Minimum number of finished members for a fusion; at most the number of members.
        prices: Price per trainer-hour, by kind of machine.
        budget: A limit of hours or of cost.
        retries: How often a training is retried, by cause.
        checkpoint: How often checkpoints are written.
        heartbeat: When a trainer counts as hung.
        environment: Whether machines with other versions are rejected; "auto" rejects them on a cluster.
    """

    name: str
    seed: int
    data: DataSpec
    train: TrainSpec
    trainings: tuple[MemberSpec, ...]
    fusion: tuple[str, ...]
    student: StudentSpec | None
    tracking: TrackingSpec
    metric: Metric
    quorum: int
    prices: Mapping[str, float]
    budget: Budget
    retries: Retries
    checkpoint: Checkpoint
    heartbeat: HeartbeatSpec
    environment: Literal["strict", "warn", "auto"]

    @cached_property
    def members(self) -> tuple[MemberRecord, ...]:
        """The members that the trainings make."""
        return tuple(recipe.record(member) for recipe in self.trainings for member in recipe.members)

    @property
    def trainer_hour_price(self) -> float:
        """The price per trainer-hour that `budget.max_cost` uses."""
        return self.prices[self.budget.price or next(iter(self.prices))]

    @property
    def recipes(self) -> tuple[MemberSpec, ...]:
        """The recipes of all trainings, the student's included."""
        return (*self.trainings, *([self.student] if self.student else []))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the members, and of the student if there is one."""
        return (*(member.name for member in self.members), *([self.student.name] if self.student else []))

    def check_names(self, option: str, names: Iterable[str]) -> None:
        """Raise UserInputError if a name is neither a member's nor the student's; `option` is for the message."""
        for name in set(names) - set(self.names):
            raise UserInputError(f"{option} {name}: no such member; there are {', '.join(self.names)}.")

    @property
    def folds(self) -> int:
        """Number of fold trainings per recipe; 0 if no fusion learns from them."""
        return self.data.folds if any(FUSIONS[name].learns_from_folds for name in self.fusion) else 0
