"""Fit a head and choose its penalty, for all rows and without each fold of them: what nested cross-validation judges a head by.

The heads without one fold choose the penalty for all rows. The heads without two folds choose the penalty for the rows without
one of them. So each head serves several times, and 5 folds need 16 heads instead of 36.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np

from fusion.fitting.blocks import Splits
from fusion.fitting.cross_validation import PENALTIES, Folds, PenaltySearch
from fusion.fitting.joint_folds import JointFolds
from fusion.fitting.row_space import RowSpaceFolds
from fusion.fitting.shrinkage import Head
from fusion.predictions import Floats, Inputs, Labels

FEW_ROWS = 1000  # up to which each head is fitted in coordinates of its own rows


class HeadFolds(Folds, Protocol):
    """The problems of all folds of a head."""

    def losses_by_fold(self) -> list[Floats]:
        """Return the NLL of each row that a fold holds out, by its head."""
        ...

    def head(self, fold: int) -> Head:
        """Return the head (C, D), (C,) of a fold, on raw inputs."""
        ...


@dataclass(frozen=True)
class NestedHeads:
    """The problem of a head, with the folds by which it is judged.

    Attributes:
        x: (n, D) inputs. Where the rows of each fold are neighbours, in the order of the folds, they are not copied.
        y: (n,) labels.
        start_of: Returns the head to start from, given the rows that a head is fitted on.
        folds: The rows of each fold. Each row is in one of them.
        penalties: Penalties to choose from, the strongest first.
    """

    x: Inputs
    y: Labels
    start_of: Callable[[Labels], Head]
    folds: Sequence[Labels]
    penalties: Sequence[float] = PENALTIES

    def of_all_rows(self) -> tuple[float, Head]:
        """Return the penalty and the head (C, D), (C,) of all rows."""
        return self._best(_left_out(len(self.folds), 0))[0]

    def nested(self) -> list[tuple[float, Head]]:
        """Return the penalty and the head (C, D), (C,) of all rows, and then those without each fold."""
        return self._best(_left_out(len(self.folds), 1))

    def _best(self, wanted: Sequence[tuple[int, ...]]) -> list[tuple[float, Head]]:
        """Return the penalty and the head of the rows without each of some choices of folds."""
        has_choice = len(self.penalties) > 1
        tried = _left_out(len(self.folds), len(wanted[-1]) + has_choice)
        number_of = {without: number for number, without in enumerate(tried)}
        splits = self._splits(tried)
        kind: type[RowSpaceFolds] | type[JointFolds] = RowSpaceFolds if len(self.x) <= FEW_ROWS else JointFolds
        heads: HeadFolds = kind(self.x, self.y, [self.start_of(fitted) for fitted, _ in splits], splits)
        searches = {without: PenaltySearch() for without in wanted}
        best = dict[tuple[int, ...], tuple[float, Head]]()
        losses = np.zeros((len(tried), len(self.y)))
        for penalty in self.penalties:
            heads.solve(penalty)
            for of_head, (_, held_out), of_rows in zip(losses, splits, heads.losses_by_fold(), strict=True):
                of_head[held_out] = of_rows
            for without, search in searches.items():
                others = (fold for fold in range(len(self.folds)) if fold not in without)
                judges = ((number_of.get(tuple(sorted({*without, fold}))), self.folds[fold]) for fold in others)
                judged = [losses[judge, rows] for judge, rows in judges if judge is not None]
                if search.add(penalty, np.concatenate([[], *judged])):
                    best[without] = penalty, heads.head(number_of[without])
            if all(search.is_over for search in searches.values()):
                break
        return [best[without] for without in wanted]

    def _splits(self, choices: Sequence[tuple[int, ...]]) -> Splits:
        """Return the rows that are fitted and those that are held out where each of some choices of folds is left out."""
        rows, none = np.arange(len(self.y)), np.zeros(0, np.int64)
        held_out = [np.sort(np.concatenate([none, *(self.folds[fold] for fold in without)])) for without in choices]
        return [(np.setdiff1d(rows, some, assume_unique=True), some) for some in held_out]


def _left_out(folds: int, most: int) -> list[tuple[int, ...]]:
    """Return each choice of at most so many folds that leaves some over: none of them first, then each one, then each two."""
    sizes = range(min(most, max(folds - 1, 0)) + 1)
    return [some for size in sizes for some in combinations(range(folds), size)]
