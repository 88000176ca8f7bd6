"""concat: a linear head on the members' concatenated features, fitted on *fuse*.

It starts as the block-concatenation of the members' own heads (W_m / M), which is exactly the mean of their logits at
one temperature, and pays for the distance to that start; an infinite penalty, one of the candidates, is the logit vote. Where
recipes differ there is a second logit vote, of members at their own temperatures; the one with the lower NLL is the start.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from fusion.calibration import calibrated_losses, temperatures
from fusion.outputs import Evidence, Floats, Inputs, Labels, Table, softmax
from fusion.shrunken import Head, Problem, best_penalty, cross_validated, fit_head, shuffled_splits
from workers.errors import ConclaveError


class Concat:
    """Attributes after fit: `coef_` (C, sum of D_m) and `intercept_` (C,) on raw features, `penalty_`, `start_`."""

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = penalty

    def fit(self, evidence: Evidence) -> Self:
        if not evidence.heads:
            raise ConclaveError("concat needs members that end in a Linear head.")
        x: Inputs = np.concatenate(evidence.fuse.features, axis=1)
        y = evidence.fuse.labels
        self.start_ = start(evidence)
        if self.penalty is None:
            self.penalty_ = best_penalty(cross_validated(x, y, self._problem, shuffled_splits(len(y))))
        else:
            self.penalty_ = self.penalty
        self.coef_, self.intercept_ = fit_head(self._problem(x, y), self.penalty_)
        return self

    def _problem(self, x: Inputs, y: Labels) -> Problem:
        return Problem(x, y, self.start_)

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        x: Inputs = np.concatenate(table.features, axis=1)
        return softmax(x @ self.coef_.T.astype(x.dtype) + self.intercept_)


def start(evidence: Evidence) -> Head:
    """(C, sum of D_m), (C,): the head that gives the mean of the members' logits, each by its temperature or as it is."""
    fuse, count = evidence.fuse, len(evidence.heads)
    votes = [np.ones(count)] if evidence.alike else [np.ones(count), temperatures(fuse)]
    best = min(votes, key=lambda by: calibrated_losses((fuse.logits / by[:, None, None]).mean(0), fuse.labels).sum())
    heads = [(w / (t * count), b / (t * count)) for (w, b), t in zip(evidence.heads, best, strict=True)]
    return np.concatenate([w for w, _ in heads], axis=1), np.sum([b for _, b in heads], axis=0)
