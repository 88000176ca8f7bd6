"""Split a packed store's rows into *fit*, *fuse*, *test* and folds, and save the split next to the store.

Reading a saved split avoids importing scikit-learn, which takes a second, and gives the same rows even after scikit-learn was
upgraded. A machine that borrows the data gets no saved split and computes its own, with the head's scikit-learn version unless
`environment: warn` allows another.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from workers.config.specs import DataSpec
from workers.data.store import Rows, Store
from workers.errors import CorruptFileError, UserInputError
from workers.storage.files import file_lock
from workers.storage.state_file import read_state, write_state


@dataclass(frozen=True)
class Split:
    """Row numbers of the parts.

    Attributes:
        fit: (n,) int64, rows that members train on.
        fuse: (n,) int64, rows that fusions are fitted and chosen on.
        test: (n,) int64, rows used only for reported scores.
        folds: (n,) int64, the fold of each *fit* row; -1 without folds.
    """

    fit: Rows
    fuse: Rows
    test: Rows
    folds: Rows


class SplitRecord(BaseModel):
    """The content of a split's file: see `Split`."""

    fit: list[int]
    fuse: list[int]
    test: list[int]
    folds: list[int]


def get_split(store: Store, spec: DataSpec, seed: int) -> Split:
    """Return the saved split of a store, or compute it from the team's seed and the data's digest.

    Args:
        store: The packed data.
        spec: The fractions and the number of folds.
        seed: The team's seed.

    Raises:
        UserInputError: If the rows cannot be split that way.
    """
    return _read(_split_path(store, spec, seed)) or _make_split(store, spec, seed)


def keep_split(store: Store, spec: DataSpec, seed: int) -> None:
    """Save the split next to the store for later processes. Raises UserInputError if the rows cannot be split."""
    path = _split_path(store, spec, seed)
    path.parent.mkdir(exist_ok=True)
    with file_lock(path.parent / ".lock"):  # two teams may start at once in the same home
        if _read(path):
            return
        for unfinished in path.parent.glob(f".{path.name}.*"):  # left by a killed process: we hold its lock
            unfinished.unlink()
        parts = {name: rows.tolist() for name, rows in asdict(_make_split(store, spec, seed)).items()}
        write_state(path, SplitRecord(**parts), "split")


def _split_path(store: Store, spec: DataSpec, seed: int) -> Path:
    settings = [store.digest, seed, spec.fuse_fraction, spec.test_fraction, spec.folds]
    return store.folder / "splits" / f"{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:20]}.json"


def _read(path: Path) -> Split | None:
    """Return a saved split, or None if it is missing or damaged, because it can be computed again."""
    try:
        record = read_state(path, SplitRecord, "")
    except CorruptFileError:
        return None
    return None if record is None else Split(*(np.array(rows, dtype=np.int64) for rows in dict(record).values()))


def _make_split(store: Store, spec: DataSpec, seed: int) -> Split:
    state = int(hashlib.sha256(f"{seed}/{store.digest}".encode()).hexdigest()[:8], 16)
    splitter = _Splitter(np.asarray(store.labels), store.classes, store.groups)
    rows = np.arange(len(splitter.labels))
    test, fuse = rows[store.tested], rows[store.validation]
    rest = rows[~(store.tested | store.validation)]
    if len(test) == 0:
        rest, test = splitter.set_apart(rest, spec.test_fraction, state, "data.test_fraction")
    if len(fuse) == 0:
        rest, fuse = splitter.set_apart(rest, spec.fuse_fraction, state + 1, "data.fuse_fraction")
    if store.folds is not None and spec.folds:
        folds = store.folds[rest]
        _check_folds(folds, spec.folds)
    else:
        folds = splitter.folds(rest, spec.folds, state + 2)
    split = Split(rest, fuse, test, folds)
    _refuse_divided_groups(store, split)
    return split


def _refuse_divided_groups(store: Store, split: Split) -> None:
    """Raise UserInputError if the data set's own parts or folds divide a group."""
    if store.groups is None:
        return
    sides = {"fit": split.fit, "fuse": split.fuse, "test": split.test}
    sides |= {f"fold {fold}": split.fit[split.folds == fold] for fold in sorted(set(split.folds.tolist()) - {-1})}
    for one, other in itertools.combinations(sides, 2):
        if one == "fit" and other.startswith("fold"):
            continue
        if len(shared := np.intersect1d(store.groups[sides[one]], store.groups[sides[other]])):
            first, second = (store.ids[rows[store.groups[rows] == shared[0]][0]] for rows in (sides[one], sides[other]))
            raise UserInputError(
                f"the manifest divides {len(shared)} groups: {first} is in {one} and {second}, of the same group, is in {other}. "
                "Give all rows of a group the same split and the same fold."
            )


def hold_out(store: Store, rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split off about this share of some rows, stratified by class, without dividing a group.

    Unlike the parts of a split, either side may lack a class.

    Args:
        store: The data.
        rows: The rows to split.
        fraction: The share.
        seed: Seed of the draw.

    Returns:
        The remaining rows and the held-out rows.

    Raises:
        UserInputError: If all rows are of one group.
    """
    if store.groups is None:
        from sklearn.model_selection import train_test_split

        remaining, held_out = train_test_split(rows, test_size=fraction, stratify=store.labels[rows], random_state=seed % 2**32)
        return remaining, held_out
    groups = len(np.unique(store.groups[rows]))
    if groups < 2:
        raise UserInputError("train.stop and search hold groups of training images out, but all images are of one group.")
    splitter = _Splitter(np.asarray(store.labels), store.classes, store.groups)
    part = splitter.divide(rows, min(round(1 / fraction), groups), seed)[0]
    return np.delete(rows, part), rows[part]


@dataclass(frozen=True)
class _Splitter:
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


def _check_folds(folds: Rows, count: int) -> None:
    """Raise UserInputError unless the data set's own folds are 0 to `count` - 1."""
    found = sorted(set(folds.tolist()))
    if found != list(range(count)):
        raise UserInputError(
            f"data.folds: {count} folds need the values 0 to {count - 1} in the manifest's fold column; "
            f"it has {', '.join(map(str, found))}."
        )
