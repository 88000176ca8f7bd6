"""concat: a linear head on the members' concatenated features, fitted on *fuse*.

It starts as the block-concatenation of the members' own heads (W_m / M), which is exactly the mean of their logits at
one temperature, and pays for the distance to that start; an infinite penalty, one of the candidates, is the logit vote.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from fusion.outputs import Evidence, Floats, Labels, Table, softmax
from fusion.shrunken import Head, Problem, choose_penalty, fit_head, shuffled_splits
from workers.errors import ConclaveError


class Concat:
    """Attributes after fit: `coef_` (C, sum of D_m) and `intercept_` (C,) on raw features, `penalty_`, `start_`."""

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = penalty

    def fit(self, evidence: Evidence) -> Self:
        if not evidence.heads:
            raise ConclaveError("concat needs members that end in a Linear head.")
        x, y = np.concatenate(evidence.fuse.features, axis=1), evidence.fuse.labels
        self.start_ = start(evidence)
        chosen = self.penalty if self.penalty is not None else choose_penalty(x, y, self._problem, shuffled_splits(len(y)))
        self.penalty_ = chosen
        self.coef_, self.intercept_ = fit_head(self._problem(x, y), chosen)
        return self

    def _problem(self, x: Floats, y: Labels) -> Problem:
        return Problem(x, y, self.start_)

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return softmax(np.concatenate(table.features, axis=1) @ self.coef_.T + self.intercept_)


def start(evidence: Evidence) -> Head:
    """(C, sum of D_m), (C,): the head that gives the mean of the members' logits."""
    count = len(evidence.heads)
    return (
        np.concatenate([w for w, _ in evidence.heads], axis=1) / count,
        np.sum([b for _, b in evidence.heads], axis=0) / count,
    )
