"""Split a packed store's rows into *fit*, *fuse*, *test* and folds.

A split is drawn once by the team's seed, and kept: later runs draw only for new images (`split_history.py`). Each split is saved
next to the store under a digest of its row numbers, which the jobs name. So every process uses the same rows.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from workers.config.specs import DataSpec
from workers.data.split_draw import NEW, Splitter, place_new_rows
from workers.data.split_history import Known, SplitHistory, Stages, fold_stage, fuse_stage, history_path, read_table, test_stage
from workers.data.store import Rows, Store
from workers.errors import CorruptFileError, UserInputError
from workers.storage.files import file_lock
from workers.storage.state_file import read_state, write_state


@dataclass(frozen=True)
class Split:
    """Row numbers of the parts.

    Attributes:
        fit: (n,) int64, rows that members train on.
        fuse: (n,) int64, rows that fusions are fitted and chosen on; empty if that is done on out-of-fold predictions.
        test: (n,) int64, rows used only for reported scores.
        folds: (n,) int64, the fold of each *fit* row; -1 without folds.
    """

    fit: Rows
    fuse: Rows
    test: Rows
    folds: Rows

    @cached_property
    def key(self) -> str:
        """Digest of the row numbers, the name of the file that holds the split."""
        arrays = (self.fit, self.fuse, self.test, self.folds)
        content = b"".join(len(rows).to_bytes(8) + np.ascontiguousarray(rows, dtype="<i8").tobytes() for rows in arrays)
        return hashlib.sha256(content).hexdigest()[:20]


class SplitRecord(BaseModel):
    """The content of a split's file: see `Split`."""

    fit: list[int]
    fuse: list[int]
    test: list[int]
    folds: list[int]


def get_split(store: Store, spec: DataSpec, seed: int, home: Path | None = None) -> Split:
    """Return the split of a store: what is known of its rows, and a draw for the others.

    Args:
        store: The packed data.
        spec: The fractions and the number of folds.
        seed: The team's seed.
        home: The home whose earlier draws hold; None to draw all rows.

    Raises:
        UserInputError: If the rows cannot be split that way.
    """
    return _draw(store, spec, seed, _known(store, spec, seed, home))[0]


def keep_split(store: Store, spec: DataSpec, seed: int, home: Path, say: Callable[[str], None] = lambda text: None) -> Split:
    """Return the split, and save it: its draws in the home, its row numbers next to the store.

    Args:
        store: The packed data.
        spec: The fractions and the number of folds.
        seed: The team's seed.
        home: The home.
        say: Called with a line of text if images are new.

    Raises:
        UserInputError: If the rows cannot be split that way.
    """
    path = history_path(home, spec, seed)
    path.parent.mkdir(exist_ok=True)
    with file_lock(path.parent / ".lock"):  # two teams may start at once in the same home
        known = _known(store, spec, seed, home)
        split, drawn = _draw(store, spec, seed, known)
        if known.new is not None and len(known.new):
            say(_describe_new(split, known.new, spec))
        if spec.split is None and drawn:
            history = _read_history(path)
            updated = history.updated(store, drawn)
            if updated != history:
                _clear_unfinished(path)
                write_state(path, updated, "split")
        target = _rows_path(store, split.key)
        target.parent.mkdir(exist_ok=True)
        if _read_rows(target) is None:
            _clear_unfinished(target)
            write_state(target, SplitRecord(**{name: rows.tolist() for name, rows in asdict(split).items()}), "split")
    return split


def _describe_new(split: Split, new: Rows, spec: DataSpec) -> str:
    """Say where new images went."""
    parts = {"fit": split.fit, "fuse": split.fuse, "test": split.test}
    counts = {part: int(np.isin(rows, new).sum()) for part, rows in parts.items()}
    where = ", ".join(f"{part} {count:,}" for part, count in counts.items() if count)
    images = "1 image is" if len(new) == 1 else f"{len(new):,} images are"
    return f"{images} {f'not in {spec.split.name}' if spec.split else 'new'} ({where}); all others stay in their part"


def read_split(store: Store, key: str) -> Split:
    """Return a split that was saved next to a store.

    Raises:
        FileNotFoundError: If it is missing, which may be temporary on a network disk.
        CorruptFileError: If it is damaged.
    """
    path = _rows_path(store, key)
    path.stat()
    split = _read_rows(path)
    if split is None or split.key != key:
        raise CorruptFileError(f"{path}: damaged. `conclave sweep` writes it again.")
    return split


def split_file(key: str) -> str:
    """Return the path of a split's file, relative to its store."""
    return f"splits/{key}.json"


def _rows_path(store: Store, key: str) -> Path:
    return store.folder / split_file(key)


def _clear_unfinished(path: Path) -> None:
    for unfinished in path.parent.glob(f".{path.name}.*"):  # left by a killed process: we hold its lock
        unfinished.unlink()


def _read_rows(path: Path) -> Split | None:
    """Return a saved split, or None if it is missing or damaged, because it can be made again."""
    try:
        record = read_state(path, SplitRecord, "")
    except CorruptFileError:
        return None
    return None if record is None else Split(*(np.array(rows, dtype=np.int64) for rows in dict(record).values()))


def _read_history(path: Path) -> SplitHistory:
    advice = "Move it away, and the next sweep draws a new split; finished trainings of the old one are not used then."
    return read_state(path, SplitHistory, advice) or SplitHistory()


def _known(store: Store, spec: DataSpec, seed: int, home: Path | None) -> Known:
    if spec.split is not None:
        return read_table(spec.split, store, spec)
    return _read_history(history_path(home, spec, seed)).known(store) if home else Known()


def _draw(store: Store, spec: DataSpec, seed: int, known: Known) -> tuple[Split, Stages]:
    """Return the split, and the draws behind it, (N,) each, with `NEW` for rows that a draw does not concern."""
    return _Drawing(store, spec, seed, known).split()


class _Share(NamedTuple):
    """A share of the rows that is set apart, and the step of the draw, which makes its seed."""

    part: str
    fraction: float
    step: int


class _Drawing:
    """Splits a store around what is known of its rows."""

    def __init__(self, store: Store, spec: DataSpec, seed: int, known: Known) -> None:
        self.store, self.spec, self.known = store, spec, known
        self.labels, self.rows = np.asarray(store.labels), np.arange(len(store.labels))
        self.state = int(hashlib.sha256(f"{seed}/{store.digest}".encode()).hexdigest()[:8], 16)
        self.splitter = Splitter(self.labels, store.classes, store.groups)
        self.stages: Stages = {}

    def split(self) -> tuple[Split, Stages]:
        spec, store = self.spec, self.store
        own_fuse = np.zeros_like(store.tested) if spec.is_out_of_fold else store.validation
        is_test = self._apart(_Share("test", spec.test_fraction, 0), test_stage(spec), ~own_fuse, store.tested)
        is_fuse = np.zeros_like(is_test)
        if not spec.is_out_of_fold:
            is_fuse = self._apart(_Share("fuse", spec.fuse_fraction, 1), fuse_stage(spec), ~is_test, own_fuse)
            if not is_fuse.any():
                raise UserInputError(f"data.split: {spec.split} has no fuse rows. Set `fuse: out_of_fold` under `data`.")
        fit = self.rows[~(is_test | is_fuse)]
        self._check_classes(fit)
        split = Split(fit, self.rows[is_fuse], self.rows[is_test], self._folds(fit))
        _refuse_divided_groups(store, split)
        return split, self.stages

    def _apart(self, share: _Share, stage: str, among: NDArray[np.bool_], own: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which rows are set apart: as known, as the data set itself says, or drawn."""
        known = np.where(among, self.known.of(stage, len(self.rows)), NEW)
        if own.any():
            is_apart: NDArray[np.bool_] = (known == 1) | (own & (known == NEW)) if self.known.is_table else own
            return is_apart
        if (known == NEW).all():
            key = f"data.{share.part}_fraction"
            _, apart = self.splitter.set_apart(self.rows[among], share.fraction, self.state + share.step, key)
            values = np.where(among, 0, NEW)
            values[apart] = 1
        else:
            values = self._placed(known, among, (1 - share.fraction, share.fraction), share.step)
        self.stages[stage] = values
        return np.asarray(values == 1)

    def _placed(self, known: Rows, among: NDArray[np.bool_], shares: tuple[float, ...], step: int) -> Rows:
        groups = None if self.store.groups is None else self.store.groups[among]
        values = np.full(len(self.rows), NEW, dtype=np.int64)
        values[among] = place_new_rows(known[among], self.labels[among], groups, shares, self.state + step)
        return values

    def _folds(self, fit: Rows) -> Rows:
        store, count = self.store, self.spec.folds
        known = self.known.of(fold_stage(self.spec), len(self.rows))[fit]
        if store.folds is not None and count and not (self.known.is_table and (known != NEW).any()):
            _check_folds(store.folds[fit], count)
            return store.folds[fit]
        if count and (known != NEW).any():
            among = np.zeros(len(self.rows), dtype=bool)
            among[fit] = True
            every = np.full(len(self.rows), NEW, dtype=np.int64)
            every[fit] = known
            folds = self._placed(every, among, (1 / count,) * count, 2)[fit]
            _check_folds(folds, count)
        else:
            folds = self.splitter.folds(fit, count, self.state + 2)
        if count:
            self.stages[fold_stage(self.spec)] = values = np.full(len(self.rows), NEW, dtype=np.int64)
            values[fit] = folds
        return folds

    def _check_classes(self, fit: Rows) -> None:
        counts = np.bincount(self.labels[fit], minlength=len(self.store.classes))
        if len(counts) and not counts.all():
            name = self.store.classes[int(counts.argmin())]
            raise UserInputError(f"no image of class {name!r} is left to fit: all are in test or fuse. Add images of it.")


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


def _check_folds(folds: Rows, count: int) -> None:
    """Raise UserInputError unless the given folds are 0 to `count` - 1."""
    found = sorted(set(folds.tolist()))
    if found != list(range(count)):
        raise UserInputError(
            f"data.folds: {count} folds need the values 0 to {count - 1} in the manifest's fold column; "
            f"it has {', '.join(map(str, found))}."
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
    splitter = Splitter(np.asarray(store.labels), store.classes, store.groups)
    part = splitter.divide(rows, min(round(1 / fraction), groups), seed)[0]
    return np.delete(rows, part), rows[part]
