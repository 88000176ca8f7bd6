"""concat: a linear head on the members' concatenated features, fitted on *fuse*.

It starts as the block-concatenation of the members' own heads (W_m / M), which is exactly the mean of their logits at
one temperature, and pays for the distance to that start; an infinite penalty, one of the candidates, is the logit vote.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from scipy.optimize import minimize
from sklearn.model_selection import KFold

from fusion.calibration import fit_temperature
from fusion.outputs import Evidence, Floats, Labels, Table, log_softmax, softmax
from workers.errors import ConclaveError

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, float("inf"))


class Concat:
    """Attributes after fit: `coef_` (C, sum of D_m) and `intercept_` (C,) on raw features, `penalty_`, `start_`."""

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = penalty

    def fit(self, evidence: Evidence) -> Self:
        if not evidence.heads:
            raise ConclaveError("concat needs members that end in a Linear head.")
        x, y = np.concatenate(evidence.fuse.features, axis=1), evidence.fuse.labels
        self.start_ = start(evidence)
        self.penalty_ = self.penalty if self.penalty is not None else self._choose(x, y)
        self.coef_, self.intercept_ = self._solve(x, y, self.penalty_)
        return self

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return softmax(np.concatenate(table.features, axis=1) @ self.coef_.T + self.intercept_)

    def _choose(self, x: Floats, y: Labels) -> float:
        losses = dict.fromkeys(PENALTIES, 0.0)
        for kept, out in KFold(min(5, len(y)), shuffle=True, random_state=0).split(y):
            for penalty in PENALTIES:
                coef, intercept = self._solve(x[kept], y[kept], penalty)
                losses[penalty] -= float(log_softmax(x[out] @ coef.T + intercept)[np.arange(len(out)), y[out]].sum())
        return min(PENALTIES, key=lambda p: (losses[p], -p))

    def _solve(self, x: Floats, y: Labels, penalty: float) -> tuple[Floats, Floats]:
        """Minimise mean NLL of start/T + D z + d, plus penalty (|D|^2 + |d|^2); z are standardised features."""
        coef, intercept = self.start_
        base = x @ coef.T + intercept
        temperature = fit_temperature(base, y)
        if np.isinf(penalty):
            return coef / temperature, intercept / temperature
        mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
        z = (x - mean) / scale
        one_hot = np.eye(len(intercept))[y]
        shape = (len(intercept), x.shape[1] + 1)

        def loss(flat: Floats) -> tuple[float, Floats]:
            delta = flat.reshape(shape)
            log_p = log_softmax(base / temperature + z @ delta[:, :-1].T + delta[:, -1])
            error = (np.exp(log_p) - one_hot) / len(y)
            gradient = np.concatenate([error.T @ z, error.sum(0)[:, None]], axis=1) + 2 * penalty * delta
            return float(-(log_p * one_hot).sum() / len(y) + penalty * (delta**2).sum()), gradient.ravel()

        found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-7})
        delta = found.x.reshape(shape)
        moved = delta[:, :-1] / scale
        return coef / temperature + moved, intercept / temperature + delta[:, -1] - moved @ mean


def start(evidence: Evidence) -> tuple[Floats, Floats]:
    """(C, sum of D_m), (C,): the head that gives the mean of the members' logits."""
    count = len(evidence.heads)
    return (
        np.concatenate([w for w, _ in evidence.heads], axis=1) / count,
        np.sum([b for _, b in evidence.heads], axis=0) / count,
    )
