"""Which networks a candidate is made of, and what it costs in multiply-adds: the same on every machine, and at every hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fusion.predictions import TeamPredictions
from fusion.selection.fitting import FittedFusion

N = TypeVar("N", covariant=True)


@dataclass(frozen=True)
class CandidateNetworks(Generic[N]):
    """The networks that fusions are made of, or something else about each of them, such as its specification.

    Attributes:
        full: The full training of each member.
        bags: The fold trainings of each member.
        student: The student.
    """

    full: Sequence[N]
    bags: Sequence[Sequence[N]] = ()
    student: N | None = None

    def used(self, fitted: FittedFusion) -> list[N]:
        """Return those that a fusion asks, in the order in which it asks them. Members without weight are left out."""
        if fitted.method.asks == "student":
            assert self.student is not None
            return [self.student]
        members = fitted.used(len(self.full))
        if fitted.method.asks == "fold trainings":
            return [network for i in members for network in self.bags[i]]
        return [self.full[i] for i in members]


@dataclass(frozen=True)
class Effort:
    """What a candidate costs, in multiply-adds.

    Attributes:
        inference: Those of an image; where a fusion asks fewer networks for some rows, their mean on *fuse*.
        training: Those of the forward passes of all trainings that had to be paid for.
    """

    inference: float
    training: float


def shares_of_networks(fusion: FittedFusion, team: TeamPredictions, count: int) -> list[float]:
    """Return the share of *fuse* rows for which a candidate asks each of its `count` networks, in its order of asking."""
    if fusion.method.asks != "members":
        return [1.0] * count
    return fusion.method.shares(fusion.narrowed(team.inputs.fuse))
