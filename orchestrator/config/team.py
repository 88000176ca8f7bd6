"""Describe a team as it is resolved: trainings expanded, merged with the defaults and seeded. It knows no files."""

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
        trainings: The recipes, each of which makes one member or several.
        fusion: The fusions to fit.
        student: The student's recipe, where `fusion` asks for one.
        tracking: Where the sweep is tracked.
        metric: What fusions are judged by.
        quorum: Number of members that must be done for a fusion; at most as many as there are.
        prices: Price of one trainer for an hour, by kind of machine.
        budget: A limit of hours or of cost.
        retries: How often a training is tried again, by cause.
        checkpoint: How often checkpoints are written.
        heartbeat: When a trainer counts as hung.
        environment: Whether machines with other versions are refused; "auto" refuses them on a cluster.
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
        """The price of one trainer for an hour that `budget.max_cost` counts by."""
        return self.prices[self.budget.price or next(iter(self.prices))]

    @property
    def recipes(self) -> tuple[MemberSpec, ...]:
        """The recipes of all trainings, the student's included."""
        return (*self.trainings, *([self.student] if self.student else []))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the members, and of the student where there is one."""
        return (*(member.name for member in self.members), *([self.student.name] if self.student else []))

    def check_names(self, option: str, names: Iterable[str]) -> None:
        """Raise UserInputError where a name is neither a member's nor the student's; `option` is for the message."""
        for name in set(names) - set(self.names):
            raise UserInputError(f"{option} {name}: no such member; there are {', '.join(self.names)}.")

    @property
    def folds(self) -> int:
        """The number of fold trainings of each training: none where no fusion learns from them."""
        return self.data.folds if any(FUSIONS[name].learns_from_folds for name in self.fusion) else 0
