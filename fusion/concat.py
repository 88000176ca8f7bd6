"""concat: a linear head on the members' concatenated features, fitted on *fuse*.

It starts as the block-concatenation of the members' own heads (W_m / M), which is exactly the mean of their logits at
one temperature, and pays for the distance to that start; an infinite penalty, one of the candidates, is the logit vote.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np
from scipy.optimize import minimize
from sklearn.model_selection import KFold

from fusion.calibration import fit_temperature
from fusion.outputs import Evidence, Floats, Labels, Table, log_softmax, softmax
from workers.errors import ConclaveError

PENALTIES = (float("inf"), 10.0, 3.0, 1.0, 0.3, 0.1)  # from the logit vote to nearly free


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
        problem = _Problem(x, y, self.start_)
        self.coef_, self.intercept_ = problem.head(problem.solve(self.penalty_, np.zeros(problem.shape)))
        return self

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return softmax(np.concatenate(table.features, axis=1) @ self.coef_.T + self.intercept_)

    def _choose(self, x: Floats, y: Labels) -> float:
        """The penalty with the lowest cross-validated NLL, from the strongest down, as long as it gets better.

        Each weaker penalty starts from the solution of the one before it, in the same fold: they are close together.
        """
        folds = [(_Problem(x[kept], y[kept], self.start_), out) for kept, out in _folds(y)]
        at = [np.zeros(problem.shape) for problem, _ in folds]
        best, lowest = PENALTIES[0], np.inf
        for penalty in PENALTIES:
            at = [problem.solve(penalty, begin) for (problem, _), begin in zip(folds, at, strict=True)]
            loss = sum(problem.loss(delta, x[out], y[out]) for (problem, out), delta in zip(folds, at, strict=True))
            if loss >= lowest:
                break
            best, lowest = penalty, loss
        return best


class _Problem:
    """Minimise, over D and d, the mean NLL of start/T + D z + d, plus penalty (|D|^2 + |d|^2); z: standardised features."""

    def __init__(self, x: Floats, y: Labels, begin: tuple[Floats, Floats]) -> None:
        coef, intercept = begin
        base = x @ coef.T + intercept
        temperature = fit_temperature(base, y)
        self.coef, self.intercept, self.base = coef / temperature, intercept / temperature, base / temperature
        self.mean, self.scale = x.mean(0), np.maximum(x.std(0), 1e-6)
        self.z, self.one_hot = (x - self.mean) / self.scale, np.eye(len(intercept))[y]
        self.shape = (len(intercept), x.shape[1] + 1)

    def solve(self, penalty: float, begin: Floats) -> Floats:
        """(C, D + 1): the columns of D, then d. An infinite penalty gives zeros."""
        if np.isinf(penalty):
            return np.zeros(self.shape)

        def objective(flat: Floats) -> tuple[float, Floats]:
            delta = flat.reshape(self.shape)
            log_p = log_softmax(self.base + self.z @ delta[:, :-1].T + delta[:, -1])
            error = (np.exp(log_p) - self.one_hot) / len(self.z)
            gradient = np.concatenate([error.T @ self.z, error.sum(0)[:, None]], axis=1) + 2 * penalty * delta
            return float(-(log_p * self.one_hot).sum() / len(self.z) + penalty * (delta**2).sum()), gradient.ravel()

        found = minimize(objective, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-7})
        return np.asarray(found.x).reshape(self.shape)

    def head(self, delta: Floats) -> tuple[Floats, Floats]:
        """(C, D), (C,): the head on raw features."""
        moved = delta[:, :-1] / self.scale
        return self.coef + moved, self.intercept + delta[:, -1] - moved @ self.mean

    def loss(self, delta: Floats, x: Floats, y: Labels) -> float:
        """Summed NLL of other rows."""
        coef, intercept = self.head(delta)
        return -float(log_softmax(x @ coef.T + intercept)[np.arange(len(y)), y].sum())


def _folds(y: Labels) -> Iterator[tuple[Labels, Labels]]:
    yield from KFold(min(5, len(y)), shuffle=True, random_state=0).split(y)


def start(evidence: Evidence) -> tuple[Floats, Floats]:
    """(C, sum of D_m), (C,): the head that gives the mean of the members' logits."""
    count = len(evidence.heads)
    return (
        np.concatenate([w for w, _ in evidence.heads], axis=1) / count,
        np.sum([b for _, b in evidence.heads], axis=0) / count,
    )
