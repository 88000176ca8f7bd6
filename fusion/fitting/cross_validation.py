"""Choose the penalty of a head by cross-validation, and judge that choice by nested cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from fusion.fitting.heads import Head, HeadProblem, Split, Start
from fusion.predictions import Floats, Labels, Predictions

PENALTIES = (float("inf"), 10.0, 3.0, 1.0, 0.3, 0.1)  # from the start itself to nearly unpenalised
PATIENCE = 2  # penalties without a better NLL before the search stops
Choice = tuple[int, ...]  # the folds that are left out of a fit


@dataclass
class CrossValidatedHead:
    """A head with the penalty that cross-validation chose.

    Attributes:
        penalty: The penalty with the lowest cross-validated NLL.
        head: The head for this penalty, fitted on all rows that were not left out.
        start: The start of that fit.
        temperature: The temperature of the start.
        nll: Cross-validated NLL by penalty, in nats per row, in the order in which penalties were tried.
    """

    penalty: float = np.inf
    head: Head = (np.zeros((0, 0)), np.zeros(0))
    start: Start = field(default_factory=lambda: Start(np.zeros((0, 0)), np.zeros(0)))
    temperature: float = 1.0
    nll: dict[float, float] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether the last PATIENCE penalties did not improve the NLL."""
        return len(self.nll) - 1 - list(self.nll).index(self.penalty) >= PATIENCE if self.nll else False

    def add(self, penalty: float, losses: Floats, problem: HeadProblem) -> None:
        """Record the next, weaker penalty, unless the search is over.

        Args:
            penalty: The penalty.
            losses: (n,) held-out NLL of each row; empty if there are no folds.
            problem: The problem of all rows, solved for the penalty.
        """
        if self.is_over:
            return
        self.nll[penalty] = float(losses.mean()) if len(losses) else 0.0
        if len(self.nll) == 1 or self.nll[penalty] < self.nll[self.penalty]:
            self.penalty, self.head = penalty, problem.head()
            self.start, self.temperature = problem.start, problem.temperature


def fit_heads(
    problem_of: Callable[[Split], HeadProblem],
    count: int,
    folds: Sequence[Labels],
    penalties: Sequence[float],
    is_nested: bool = False,
) -> list[CrossValidatedHead]:
    """Fit a head to all rows and, for nested cross-validation, to the rows without each fold.

    The heads without one fold choose the penalty for all rows. The heads without two folds choose it for the rows without one
    of them. So each head serves several times: 5 folds need 16 heads instead of 36. Each weaker penalty starts from the solution
    of the one before it.

    Args:
        problem_of: Returns the problem that fits some rows and holds out others.
        count: Number of rows.
        folds: Rows of each fold. Each row is in exactly one fold; empty for a single row.
        penalties: Penalties to choose from, the strongest first.
        is_nested: Whether to fit the heads without each fold, too.

    Returns:
        The head of all rows, and then the heads without each fold if `is_nested`.
    """
    wanted = _choices(len(folds), int(is_nested))
    tried = _choices(len(folds), len(wanted[-1]) + 1)
    every = np.arange(count)
    held_out = {choice: np.concatenate([every[:0], *(folds[fold] for fold in choice)]) for choice in tried}
    problems = {choice: problem_of((np.setdiff1d(every, rows), rows)) for choice, rows in held_out.items()}
    found = {choice: CrossValidatedHead() for choice in wanted}
    for penalty in penalties:
        losses = {choice: _losses_by_row(problems[choice], penalty, held_out[choice], count) for choice in tried}
        for choice, best in found.items():
            judges = {fold: tuple(sorted({*choice, fold})) for fold in range(len(folds)) if fold not in choice}
            judged = [losses[judge][folds[fold]] for fold, judge in judges.items() if judge in losses]
            best.add(penalty, np.concatenate([np.zeros(0), *judged]), problems[choice])
        if all(best.is_over for best in found.values()):
            break
    return list(found.values())


def _losses_by_row(problem: HeadProblem, penalty: float, held_out: Labels, count: int) -> Floats:
    """Solve a problem for a penalty; return its NLL of the held-out rows, (n,), and 0 for the others."""
    problem.solve(penalty)
    losses = np.zeros(count)
    losses[held_out] = problem.losses()
    return losses


def _choices(folds: int, most: int) -> list[Choice]:
    """Return all choices of at most `most` folds that leave at least one fold, smallest first."""
    sizes = range(min(most, max(folds - 1, 0)) + 1)
    return [choice for size in sizes for choice in combinations(range(folds), size)]


def describe_penalty(penalty: float) -> str:
    """Describe a chosen penalty for the report."""
    return f"penalty {penalty:g}" if np.isfinite(penalty) else "stays at uniform averaging: nothing else is better"


def splits_of(predictions: Predictions) -> list[Split]:
    """Return the fitted and held-out rows of each fold: the predictions' own parts, or shuffled folds."""
    parts = predictions.parts
    if parts is None or len(found := np.unique(parts)) < 2:
        return shuffled_splits(len(predictions.labels), predictions.groups)
    return [(np.flatnonzero(parts != part), np.flatnonzero(parts == part)) for part in found]


def shuffled_splits(rows: int, groups: Labels | None = None) -> list[Split]:
    """Split rows into five shuffled folds that divide no group, or one fold per row or group if fewer.

    Args:
        rows: Number of rows.
        groups: (n,) group of each row; None without groups.

    Returns:
        Fitted and held-out rows of each fold; empty for a single row or group.
    """
    from sklearn.model_selection import GroupKFold, KFold

    units = rows if groups is None else len(np.unique(groups))
    if units < 2:
        return []
    kind = KFold if groups is None else GroupKFold
    return list(kind(min(5, units), shuffle=True, random_state=0).split(np.arange(rows), groups=groups))
