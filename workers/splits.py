"""A packed store's rows -> *fit*, *fuse*, *test* and folds; kept beside the store once a sweep begins.

Who reads a kept split need not import scikit-learn, which takes a second of every process, and gets the same rows whatever
version of it is there by now. A machine that borrows the data (workers/elsewhere.py) gets none and makes its own, by the head's
version unless `environment: warn` lets it have another.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np
from filelock import FileLock

from workers.data import Rows, Store
from workers.errors import Rejected
from workers.files import write_bytes
from workers.spec import DataSpec


@dataclass(frozen=True)
class Split:
    """Row numbers of *fit*, *fuse* and *test*, and for each *fit* row its fold (-1 without folds); int64, (n,) each."""

    fit: Rows
    fuse: Rows
    test: Rows
    folds: Rows


def split(store: Store, spec: DataSpec, seed: int) -> Split:
    """Stratified, from the team's seed and the data's digest; the kept one where there is one. Raises Rejected."""
    return _read(_kept(store, spec, seed)) or _make(store, spec, seed)


def keep(store: Store, spec: DataSpec, seed: int) -> None:
    """Leave the split beside the store, for all who ask later. Raises Rejected."""
    path = _kept(store, spec, seed)
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.parent / ".lock"):  # two teams of one home may begin at once
        if _read(path):
            return
        for begun in path.parent.glob(f".{path.name}.*"):  # of a process that was killed: we hold its lock
            begun.unlink()
        content = BytesIO()
        np.savez_compressed(content, allow_pickle=False, **asdict(_make(store, spec, seed)))
        write_bytes(path, content.getvalue(), "split")


def _kept(store: Store, spec: DataSpec, seed: int) -> Path:
    asked = [store.digest, seed, spec.fuse_fraction, spec.test_fraction, spec.folds]
    return store.folder / "splits" / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:20]}.npz"


def _read(path: Path) -> Split | None:
    """None where it isn't there, or not whole."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Split(*(kept[part.name] for part in fields(Split)))
    except Exception:  # a damaged archive raises whatever its damage leads to, and the split can be made again
        return None


def _make(store: Store, spec: DataSpec, seed: int) -> Split:
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
            raise Rejected(
                f"data.folds: {spec.folds} folds, but the smallest class has {fewest} rows to fit. "
                "Lower data.folds, or add images."
            )
        parts = StratifiedKFold(spec.folds, shuffle=True, random_state=(state + 2) % 2**32).split(fit, labels[fit])
        for fold, (_, left_out) in enumerate(parts):
            folds[left_out] = fold
    return Split(fit, fuse, test, folds)


def _halves(rows: Rows, labels: Rows, fraction: float, state: int, key: str) -> tuple[Rows, Rows]:
    from sklearn.model_selection import train_test_split

    try:
        kept, apart = train_test_split(rows, test_size=fraction, stratify=labels[rows], random_state=state % 2**32)
    except ValueError as error:
        raise Rejected(f"{key}: {fraction:g} of {len(rows)} rows can't be set apart in every class ({error}).") from None
    return np.sort(kept), np.sort(apart)
