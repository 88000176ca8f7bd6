"""Split a packed store's rows into *fit*, *fuse*, *test* and folds, and keep the split beside the store.

A process that reads a kept split need not import scikit-learn, which takes a second, and gets the same rows whatever version of
it is there by now. A machine that borrows the data gets no kept split and makes its own, by the head's version unless
`environment: warn` allows another.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np
from filelock import FileLock

from workers.config.specs import DataSpec
from workers.data.store import Rows, Store
from workers.errors import UserInputError
from workers.storage.files import write_bytes


@dataclass(frozen=True)
class Split:
    """Row numbers of the parts.

    Attributes:
        fit: (n,) int64, rows that members train on.
        fuse: (n,) int64, rows that fusions are fitted and chosen on.
        test: (n,) int64, rows that only report.
        folds: (n,) int64, the fold of each *fit* row; -1 without folds.
    """

    fit: Rows
    fuse: Rows
    test: Rows
    folds: Rows


def get_split(store: Store, spec: DataSpec, seed: int) -> Split:
    """Return the kept split of a store, or make one from the team's seed and the data's digest.

    Args:
        store: The packed data.
        spec: The fractions and the number of folds.
        seed: The team's seed.

    Raises:
        UserInputError: If the rows cannot be split in this way.
    """
    return _read(_split_path(store, spec, seed)) or _make_split(store, spec, seed)


def keep_split(store: Store, spec: DataSpec, seed: int) -> None:
    """Write the split beside the store, for all who ask later. Raises UserInputError where the rows cannot be split."""
    path = _split_path(store, spec, seed)
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.parent / ".lock"):  # two teams of one home may begin at once
        if _read(path):
            return
        for unfinished in path.parent.glob(f".{path.name}.*"):  # of a process that was killed: we hold its lock
            unfinished.unlink()
        content = BytesIO()
        np.savez_compressed(content, allow_pickle=False, **asdict(_make_split(store, spec, seed)))
        write_bytes(path, content.getvalue(), "split")


def _split_path(store: Store, spec: DataSpec, seed: int) -> Path:
    settings = [store.digest, seed, spec.fuse_fraction, spec.test_fraction, spec.folds]
    return store.folder / "splits" / f"{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:20]}.npz"


def _read(path: Path) -> Split | None:
    """Return a kept split, or None where it is missing or damaged: it can be made again."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Split(*(arrays[part.name] for part in fields(Split)))
    except Exception:  # a damaged archive raises whatever its damage leads to, and the split can be made again
        return None


def _make_split(store: Store, spec: DataSpec, seed: int) -> Split:
    from sklearn.model_selection import StratifiedKFold

    state = int(hashlib.sha256(f"{seed}/{store.digest}".encode()).hexdigest()[:8], 16)
    labels = np.asarray(store.labels)
    rows = np.arange(len(labels))
    test = rows[store.tested]
    rest = rows[~store.tested]
    if len(test) == 0:
        rest, test = _halves(rest, labels, spec.test_fraction, state, "data.test_fraction")
    fit, fuse = _halves(rest, labels, spec.fuse_fraction, state + 1, "data.fuse_fraction")
    folds = np.full(len(fit), -1, dtype=np.int64)
    if spec.folds:
        fewest = int(np.bincount(labels[fit], minlength=len(store.classes)).min())
        if fewest < spec.folds:
            raise UserInputError(
                f"data.folds: {spec.folds} folds, but the smallest class has {fewest} rows to fit. "
                "Lower data.folds, or add images."
            )
        parts = StratifiedKFold(spec.folds, shuffle=True, random_state=(state + 2) % 2**32).split(fit, labels[fit])
        for fold, (_, left_out) in enumerate(parts):
            folds[left_out] = fold
    return Split(fit, fuse, test, folds)


def _halves(rows: Rows, labels: Rows, fraction: float, state: int, key: str) -> tuple[Rows, Rows]:
    """Set a share of the rows apart, stratified. Raises UserInputError where that cannot be done in every class."""
    from sklearn.model_selection import train_test_split

    try:
        remaining, apart = train_test_split(rows, test_size=fraction, stratify=labels[rows], random_state=state % 2**32)
    except ValueError as error:
        raise UserInputError(f"{key}: {fraction:g} of {len(rows)} rows can't be set apart in every class ({error}).") from None
    return np.sort(remaining), np.sort(apart)
