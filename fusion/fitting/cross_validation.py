"""Choose the penalty of a head by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fusion.fitting.blocks import Splits
from fusion.fitting.shrinkage import Head, ShrinkageProblem
from fusion.predictions import Floats, Inputs, Labels

PENALTIES = (float("inf"), 10.0, 3.0, 1.0, 0.3, 0.1)  # from the start itself to nearly free
PATIENCE = 2


class Folds(Protocol):
    """The problems of all folds."""

    def solve(self, penalty: float) -> None:
        """Solve for a penalty, from the last solution on."""

    def losses(self) -> Floats:
        """Return the NLL of each row, (n,), by the head that was fitted without it."""


@dataclass
class PenaltySearch:
    """Penalties that were tried, from the strongest down, until the NLL got no better PATIENCE times.

    Attributes:
        losses: The NLL of each row, (n,), by a head that was fitted without it, for each penalty.
    """

    losses: dict[float, Floats] = field(default_factory=dict)
    _lowest: float = np.inf
    _worse: int = 0

    @property
    def is_over(self) -> bool:
        """Whether no weaker penalty is to be tried."""
        return self._worse == PATIENCE

    def add(self, penalty: float, losses: Floats) -> bool:
        """Add what a penalty came to, and return whether it is the best one by now. Nothing is added to a search that is over."""
        if self.is_over:
            return False
        self.losses[penalty] = losses
        total = float(losses.sum())
        is_best = total < self._lowest
        self._lowest, self._worse = (total, 0) if is_best else (self._lowest, self._worse + 1)
        return is_best


def cross_validated(folds: Folds, penalties: Sequence[float] = PENALTIES) -> dict[float, Floats]:
    """Return the NLL of each row, (n,), by a head that was fitted without it, for each penalty that was tried.

    Each weaker penalty starts from the solution of the one before it, in the same fold: they are close together.

    Args:
        folds: The problems of all folds.
        penalties: Penalties to try, the strongest first.
    """
    search = PenaltySearch()
    for penalty in penalties:
        folds.solve(penalty)
        search.add(penalty, folds.losses())
        if search.is_over:
            break
    return search.losses


def best_penalty(losses: Mapping[float, Floats]) -> float:
    """Return the strongest of the penalties with the lowest cross-validated NLL."""
    return min(losses, key=lambda penalty: (losses[penalty].sum(), -penalty))


def penalty_in_words(penalty: float) -> str:
    """Return what a chosen penalty means, for the report."""
    return f"penalty {penalty:g}" if np.isfinite(penalty) else "stays at uniform averaging: nothing else is better"


def shuffled_splits(rows: int) -> Splits:
    """Return five folds, or as many as there are rows; none of a single row, by which nothing can be judged."""
    from sklearn.model_selection import KFold

    if rows < 2:
        return []
    return list(KFold(min(5, rows), shuffle=True, random_state=0).split(np.arange(rows)))


class SeparateFolds:
    """Folds that are solved one after another: for problems of few parameters.

    Args:
        kind: The class of the problems.
        x: (n, D) inputs.
        y: (n,) labels.
        start: The head to start from.
        splits: Fitted rows and held-out rows of each fold.
    """

    def __init__(self, kind: type[ShrinkageProblem], x: Inputs, y: Labels, start: Head, splits: Splits) -> None:
        self.x, self.y, self.splits = x, y, splits
        self.problems = [kind(x[fitted], y[fitted], start) for fitted, _ in splits]
        self.deltas = [np.zeros(problem.shape) for problem in self.problems]

    def solve(self, penalty: float) -> None:
        """Solve for a penalty, from the last solution on."""
        self.deltas = [problem.solve(penalty, delta) for problem, delta in zip(self.problems, self.deltas, strict=True)]

    def losses(self) -> Floats:
        """Return the NLL of each row, (n,), by the head that was fitted without it."""
        losses = np.zeros(len(self.y))
        for problem, delta, (_, held_out) in zip(self.problems, self.deltas, self.splits, strict=True):
            losses[held_out] = problem.losses(delta, self.x[held_out], self.y[held_out])
        return losses
