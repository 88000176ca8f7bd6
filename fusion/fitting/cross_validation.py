"""Choose the penalty of a head by cross-validation. With many rows, all folds are solved together and share the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fusion.fitting.joint_folds import JointFolds, Splits, calibrated
from fusion.fitting.row_space import RowSpaceFolds
from fusion.fitting.shrinkage import Head, ShrinkageProblem
from fusion.predictions import Floats, Inputs, Labels

PENALTIES = (float("inf"), 10.0, 3.0, 1.0, 0.3, 0.1)  # from the start itself to nearly free
PATIENCE = 2
FEW_ROWS = 1000  # up to which each fold is solved in coordinates of its own rows


class Folds(Protocol):
    """The problems of all folds."""

    def solve(self, penalty: float) -> None:
        """Solve for a penalty, from the last solution on."""

    def losses(self) -> Floats:
        """Return the NLL of each row, (n,), by the head that was fitted without it."""


class HeadFolds(Folds, Protocol):
    """The problems of all folds of a head, each of which may have a penalty of its own."""

    def solve(self, penalty: float | Floats) -> None:
        """Solve for a penalty, or for one of each fold, from the last solution on."""

    def begin_near(self, others: Any, groups: Sequence[Labels]) -> None:
        """Begin each fold near the solutions of a group of folds of the same rows, where that saves steps."""

    def losses_by_fold(self) -> list[Floats]:
        """Return the NLL of each row that a fold holds out, by its head."""
        ...

    def heads(self) -> list[Head]:
        """Return the head (C, D), (C,) of each fold, on raw inputs."""
        ...


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

    def add(self, penalty: float, losses: Floats) -> None:
        """Add what a penalty came to; nothing where the search is over."""
        if self.is_over:
            return
        self.losses[penalty] = losses
        total = float(losses.sum())
        self._lowest, self._worse = (total, 0) if total < self._lowest else (self._lowest, self._worse + 1)


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


def solve_parts(x: Inputs, y: Labels, starts: Sequence[Head], parts: Sequence[Labels]) -> list[tuple[float, Head]]:
    """Choose a penalty by cross-validation, and fit a head by it, on each of several parts of the rows; all of them at once.

    Args:
        x: (n, D) inputs.
        y: (n,) labels.
        starts: The head that each part starts from.
        parts: The rows of each part.

    Returns:
        The penalty and the head (C, D), (C,) of each part.
    """
    inner = [[(rows[fitted], rows[held_out]) for fitted, held_out in shuffled_splits(len(rows))] for rows in parts]
    owners = np.array([part for part, splits in enumerate(inner) for _ in splits])
    kind: type[RowSpaceFolds] | type[JointFolds] = RowSpaceFolds if len(x) <= FEW_ROWS else JointFolds
    folds: HeadFolds = kind(x, y, [starts[part] for part in owners], [split for splits in inner for split in splits])
    searches = [PenaltySearch() for _ in parts]
    for penalty in PENALTIES:
        folds.solve(penalty)
        losses = folds.losses_by_fold()
        for part, search in enumerate(searches):
            search.add(penalty, np.concatenate([[], *(losses[fold] for fold in np.flatnonzero(owners == part))]))
        if all(search.is_over for search in searches):
            break
    penalties = [best_penalty(search.losses) for search in searches]
    heads = [calibrated(start, x, y, rows) for start, rows in zip(starts, parts, strict=True)]
    if moved := [part for part, penalty in enumerate(penalties) if np.isfinite(penalty)]:
        final: HeadFolds = kind(x, y, [starts[part] for part in moved], [(parts[part], parts[part][:0]) for part in moved])
        final.begin_near(folds, [np.flatnonzero(owners == part) for part in moved])
        final.solve(np.array([penalties[part] for part in moved]))
        for part, head in zip(moved, final.heads(), strict=True):
            heads[part] = head
    return list(zip(penalties, heads, strict=True))


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
