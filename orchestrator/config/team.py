"""Describe a resolved team: trainings expanded, merged with the defaults and seeded. Independent of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fusion.interface import FUSIONS
from fusion.results import Metric
from orchestrator.config.settings import Budget, Checkpoint, HeartbeatSpec, RecommendSpec, Retries, TrackingSpec
from workers.config.specs import DataSpec, MemberRecord, MemberSpec, StudentSpec, TrainSpec
from workers.config.strict import Name, Shorthand, Strict
from workers.errors import UserInputError


def _errors(value: Any) -> Any:
    """Let `2` stand for `{errors: 2}`."""
    return {"errors": value} if isinstance(value, int) and not isinstance(value, bool) else value


RetriesEntry = Annotated[Retries, BeforeValidator(_errors), Shorthand({"type": "integer", "minimum": 0})]


class TeamSettings(Strict):
    """The keys that have the same form in a team file and in a resolved team."""

    name: Name = Field(description="The name of the team and of its sweep.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the split; members' seeds derive from it by default.")
    data: DataSpec = Field(DataSpec(), description="The data set and its splits.")
    train: TrainSpec = Field(TrainSpec(), description="What all trainings share.")
    tracking: TrackingSpec = Field(TrackingSpec(), description="Where the sweep is tracked.")
    metric: Metric = Field("nll", description="Metric by which fusions are judged.")
    recommend: RecommendSpec = Field(RecommendSpec(), description="How the recommended candidate is chosen.")
    quorum: int = Field(2, ge=1, description="Minimum number of finished members for a fusion.")
    budget: Budget = Field(Budget(), description="A limit of hours or of cost.")
    retries: RetriesEntry = Field(Retries(), description="How often a training is retried, by cause.")
    checkpoint: Checkpoint = Field(Checkpoint(), description="How often checkpoints are written.")
    heartbeat: HeartbeatSpec = Field(HeartbeatSpec(), description="When a trainer counts as hung.")


class Team(TeamSettings):
    """A whole team, resolved.

    Attributes:
        trainings: The recipes; each makes one or more members.
        fusion: The fusions to fit.
        student: The student's recipe, if `fusion` uses a student.
        prices: Price per trainer-hour, by kind of machine.
        environment: Whether machines with other versions are rejected; "auto" rejects them on a cluster.
    """

    trainings: tuple[MemberSpec, ...]
    fusion: tuple[str, ...]
    student: StudentSpec | None
    prices: Mapping[str, float]
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
        """Number of fold trainings per recipe; 0 if no fusion learns from them, and none is judged by them."""
        return self.data.folds if self.data.is_out_of_fold or any(FUSIONS[name].learns_from_folds for name in self.fusion) else 0
