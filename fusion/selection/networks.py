"""List the networks of a candidate, and its cost in multiply-adds, which is the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fusion.selection.fitting import FittedFusion

N = TypeVar("N", covariant=True)


@dataclass(frozen=True)
class CandidateNetworks(Generic[N]):
    """The networks that fusions may use, or another value for each network, such as its specification.

    Attributes:
        full: The full training of each member.
        bags: The fold trainings of each member.
        student: The student.
    """

    full: Sequence[N]
    bags: Sequence[Sequence[N]] = ()
    student: N | None = None

    def used(self, fitted: FittedFusion) -> list[N]:
        """Return the networks that a fusion runs, in running order. Members without weight are left out."""
        if fitted.method.asks == "student":
            assert self.student is not None
            return [self.student]
        members = fitted.used(len(self.full))
        if fitted.method.asks == "fold trainings":
            return [network for i in members for network in self.bags[i]]
        return [self.full[i] for i in members]


@dataclass(frozen=True)
class Effort:
    """Cost of a candidate in multiply-adds.

    Attributes:
        inference: Multiply-adds per image of everything that the exported file runs.
        training: Multiply-adds of the forward passes of all trainings that the candidate needs.
    """

    inference: float
    training: float
