"""Draw the parts and folds of rows: stratified by class, without dividing a group, and around rows that have a part already."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.data.store import Rows
from workers.errors import UserInputError

NEW = -1  # the part of a row that has none yet


@dataclass(frozen=True)
class Splitter:
    """Splits rows, stratified by class, and keeps groups together if there are any.

    Attributes:
        labels: (N,) index of each row's class.
        classes: The class names.
        groups: (N,) number of each row's group; None without groups.
    """

    labels: Rows
    classes: list[str]
    groups: Rows | None

    def set_apart(self, rows: Rows, fraction: float, state: int, key: str) -> tuple[Rows, Rows]:
        """Split off a share of the rows. Return the remaining rows and the split-off rows.

        Args:
            rows: The rows to split.
            fraction: The share.
            state: Random seed of the draw.
            key: The team file's key of the share, for messages.

        Raises:
            UserInputError: If either side would lack a class.
        """
        if self.groups is not None:
            return self._set_groups_apart(rows, fraction, state, key)
        from sklearn.model_selection import train_test_split

        self._check_fraction(rows, fraction, key)
        labels = self.labels[rows]
        remaining, apart = train_test_split(rows, test_size=fraction, stratify=labels, random_state=state % 2**32)
        remaining, apart = self._with_every_class(remaining, apart, state)
        return np.sort(remaining), np.sort(apart)

    def _check_fraction(self, rows: Rows, fraction: float, key: str) -> None:
        """Raise UserInputError, suggesting a share that works, if either side has no room for every class."""
        counts = np.bincount(self.labels[rows], minlength=len(self.classes))
        if counts.min() < 2:
            name, left = self.classes[int(counts.argmin())], int(counts.min())
            raise UserInputError(
                f"{key}: class {name!r} has {left} images left to split, and 2 are needed. Add images of it, or remove it."
            )
        present, apart = len(self.classes), math.ceil(fraction * len(rows))
        if min(apart, len(rows) - apart) >= present:
            return
        least = math.ceil(1000 * present / len(rows)) / 1000
        works = f"A share from {least:g} to {1 - least:g} works" if least <= 0.5 else f"At least {2 * present} images are needed"
        raise UserInputError(
            f"{key}: {fraction:g} of {len(rows):,} images leaves fewer than {present}, one for each class, on one side. {works}."
        )

    def _with_every_class(self, remaining: Rows, apart: Rows, state: int) -> tuple[Rows, Rows]:
        """Move an image of each class missing in `apart` there from `remaining`."""
        for label in np.setdiff1d(np.arange(len(self.classes)), self.labels[apart]).tolist():
            own = np.sort(remaining[self.labels[remaining] == label])
            chosen = own[np.random.default_rng([state, label]).integers(len(own))]
            remaining, apart = remaining[remaining != chosen], np.append(apart, chosen)
        return remaining, apart

    def _set_groups_apart(self, rows: Rows, fraction: float, state: int, key: str) -> tuple[Rows, Rows]:
        """Split off whole groups, as close to the share and the class proportions as possible."""
        fewest, name = self._fewest_groups(rows)
        if fewest < 2:
            raise UserInputError(
                f"{key}: all images of class {name!r} are of one group, which stays together. Add groups of it, or remove it."
            )
        for part in self.divide(rows, min(max(2, round(1 / fraction)), fewest), state):
            is_apart = np.zeros(len(rows), dtype=bool)
            is_apart[part] = True
            if all(len(np.unique(self.labels[rows[side]])) == len(self.classes) for side in (is_apart, ~is_apart)):
                return rows[~is_apart], rows[is_apart]
        raise UserInputError(
            f"{key}: no share of whole groups near {fraction:g} has every class on both sides. "
            f"Class {name!r} has {fewest} groups. Add groups of it, or say in the manifest's split column which rows are which."
        )

    def _fewest_groups(self, rows: Rows) -> tuple[int, str]:
        """Return the number of groups and the name of the class with the fewest groups."""
        assert self.groups is not None
        counts = [len(np.unique(self.groups[rows[self.labels[rows] == label]])) for label in range(len(self.classes))]
        fewest = int(np.argmin(counts))
        return counts[fewest], self.classes[fewest]

    def divide(self, rows: Rows, parts: int, state: int) -> list[Rows]:
        """Divide the rows into this many parts, keeping groups together. Return each part's positions in `rows`."""
        from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

        kind, groups = (StratifiedKFold, None) if self.groups is None else (StratifiedGroupKFold, self.groups[rows])
        splitter = kind(parts, shuffle=True, random_state=state % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the data summary names classes with fewer rows than folds
            return [left_out for _, left_out in splitter.split(rows, self.labels[rows], groups)]

    def folds(self, rows: Rows, count: int, state: int) -> Rows:
        """Return the fold of each row, or -1 for all rows if `count` is 0.

        Raises:
            UserInputError: If there are too few rows or groups for `count` folds.
        """
        if self.groups is None:
            most = int(np.bincount(self.labels[rows], minlength=len(self.classes)).max())
            why = f"the largest class has {most} rows to fit"
        else:
            most, name = self._fewest_groups(rows)
            why = f"class {name!r} has {most} groups to fit"
        if most < count:
            advice = f"Set data.folds to {most} or fewer" if most > 1 else "Set data.folds to 0"
            raise UserInputError(f"data.folds: {count} folds, but {why}. {advice}, or add images.")
        folds = np.full(len(rows), -1, dtype=np.int64)
        for fold, left_out in enumerate(self.divide(rows, count, state) if count else ()):
            folds[left_out] = fold
        return folds


def place_new_rows(parts: Rows, labels: Rows, groups: Rows | None, shares: Sequence[float], seed: int) -> Rows:
    """Return the part of each row, where rows that have one keep it.

    New rows go, in a random order, to the part whose classes lack most rows for its share. Groups stay together: a new row
    follows its group, and a group whose rows have different parts goes where most of them are.

    Args:
        parts: (n,) the part of each row, `NEW` for rows without.
        labels: (n,) index of each row's class.
        groups: (n,) number of each row's group; None without groups.
        shares: The share of each part.
        seed: Seed of the order.
    """
    placed = parts.copy()
    units = np.arange(len(parts)) if groups is None else np.unique(groups, return_inverse=True)[1]
    known = placed != NEW
    votes: Rows = np.zeros((units.max(initial=-1) + 1, len(shares)), dtype=np.int64)
    np.add.at(votes, (units[known], placed[known]), 1)
    has_part = votes.sum(1) > 0
    placed = np.where(has_part[units], votes.argmax(1)[units], placed)

    classes = int(labels.max(initial=-1)) + 1
    lacking = np.outer(shares, np.bincount(labels, minlength=classes)).astype(np.float64)
    np.subtract.at(lacking, (placed[placed != NEW], labels[placed != NEW]), 1)
    new = np.unique(units[placed == NEW])
    order = np.random.default_rng([seed % 2**32, len(new)]).permutation(new)
    by_unit = _rows_of(units)
    for unit in sorted(order.tolist(), key=lambda unit: -len(by_unit[unit])):  # large groups first: small ones even out
        rows = by_unit[unit]
        part = int(lacking[:, labels[rows]].sum(1).argmax())
        placed[rows] = part
        np.subtract.at(lacking[part], labels[rows], 1)
    return placed


def _rows_of(units: Rows) -> list[NDArray[np.int64]]:
    """Return the rows of each unit, given (n,) the unit of each row."""
    order = np.argsort(units, kind="stable")
    return np.split(order, np.cumsum(np.bincount(units))[:-1]) if len(units) else []
