"""Digest what a training reads, so that rows which it does not read leave its signature as it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from workers.data.splits import Split
from workers.data.store import Store


@dataclass(frozen=True, eq=False)
class FitContent:
    """The *fit* rows of a store: ids, pixels, labels, weights, groups and folds.

    Attributes:
        store: The packed data.
        split: Its split.
    """

    store: Store
    split: Split

    @lru_cache  # noqa: B019 - it lives as long as a plan is made
    def digest(self, fold: int | None, has_groups: bool) -> str:
        """Return a digest of what a training reads.

        Args:
            fold: The fold that it leaves out, which decides on the rows that it predicts; None for a full training.
            has_groups: Whether it holds rows out, and so reads their groups.
        """
        store, rows = self.store, self.split.fit
        hasher = hashlib.sha256(json.dumps([store.classes, store.size]).encode())
        hasher.update(store.keys[rows].tobytes() + np.asarray(store.labels)[rows].tobytes())
        if store.weights is not None:
            hasher.update(b"weights" + store.weights[rows].tobytes())
        if has_groups and store.groups is not None:
            hasher.update(b"groups" + np.unique(store.groups[rows], return_inverse=True)[1].astype("<i8").tobytes())
        if fold is not None:
            hasher.update(b"left out" + (self.split.folds == fold).tobytes())
        return hasher.hexdigest()
