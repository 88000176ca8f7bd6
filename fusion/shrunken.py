"""A linear head that pays for the distance to where it starts: what concat and stack have in common.

Minimise, over D and d, the mean NLL of start/T + D z + d, plus penalty (|D|^2 + |d|^2), with z the standardised inputs
and T the temperature that suits the start. An infinite penalty, one of the candidates, is the calibrated start itself, so
a head that can't be trusted stays where averaging stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize
from sklearn.model_selection import KFold

from fusion.calibration import fit_temperature
from fusion.outputs import Floats, Labels, log_softmax

PENALTIES = (float("inf"), 10.0, 3.0, 1.0, 0.3, 0.1)  # from the start itself to nearly free
PATIENCE = 2
Head = tuple[Floats, Floats]  # coefficients (C, D) and intercept (C,)
Splits = Sequence[tuple[Labels, Labels]]
Make = Callable[[Floats, Labels], "Problem"]


def fit_head(problem: Problem, penalty: float) -> Head:
    """The head on raw inputs."""
    return problem.head(problem.solve(penalty, np.zeros(problem.shape)))


def choose_penalty(x: Floats, y: Labels, make: Make, splits: Splits, penalties: Sequence[float] = PENALTIES) -> float:
    """The penalty with the lowest cross-validated NLL, from the strongest down, until it got no better PATIENCE times.

    Each weaker penalty starts from the solution of the one before it, in the same fold: they are close together.
    """
    folds = [(make(x[kept], y[kept]), out) for kept, out in splits]
    at = [np.zeros(problem.shape) for problem, _ in folds]
    best, lowest, worse = penalties[0], np.inf, 0
    for penalty in penalties:
        at = [problem.solve(penalty, begin) for (problem, _), begin in zip(folds, at, strict=True)]
        loss = sum(problem.loss(delta, x[out], y[out]) for (problem, out), delta in zip(folds, at, strict=True))
        if loss < lowest:
            best, lowest, worse = penalty, loss, 0
        elif (worse := worse + 1) == PATIENCE:
            break
    return best


def shuffled_splits(rows: int) -> Splits:
    """Five folds, or as many as there are rows."""
    return list(KFold(min(5, rows), shuffle=True, random_state=0).split(np.arange(rows)))


class Problem:
    """The objective on one set of rows: (n, D) inputs, (n,) labels."""

    shape: tuple[int, ...]

    def __init__(self, x: Floats, y: Labels, start: Head) -> None:
        coef, intercept = start
        base = x @ coef.T + intercept
        temperature = fit_temperature(base, y)
        self.coef, self.intercept, self.base = coef / temperature, intercept / temperature, base / temperature
        self.mean, self.scale = x.mean(0), np.maximum(x.std(0), 1e-6)
        self.z, self.one_hot = (x - self.mean) / self.scale, np.eye(len(intercept))[y]
        self.shape = (len(intercept), x.shape[1] + 1)

    def solve(self, penalty: float, begin: Floats) -> Floats:
        """The move from the start, of this problem's shape. An infinite penalty gives zeros."""
        if np.isinf(penalty):
            return np.zeros(self.shape)

        def objective(flat: Floats) -> tuple[float, Floats]:
            delta = flat.reshape(self.shape)
            log_p = log_softmax(self.base + self.moved(delta))
            gradient = self.gradient((np.exp(log_p) - self.one_hot) / len(self.z)) + 2 * penalty * delta
            return float(-(log_p * self.one_hot).sum() / len(self.z) + penalty * (delta**2).sum()), gradient.ravel()

        found = minimize(objective, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-7})
        return np.asarray(found.x).reshape(self.shape)

    def moved(self, delta: Floats) -> Floats:
        """(C, D + 1), the columns of D and then d -> (n, C), what the logits change by."""
        return np.asarray(self.z @ delta[:, :-1].T + delta[:, -1])

    def gradient(self, error: Floats) -> Floats:
        """Of a loss whose derivative by the logits is `error` (n, C)."""
        return np.concatenate([error.T @ self.z, error.sum(0)[:, None]], axis=1)

    def head(self, delta: Floats) -> Head:
        """(C, D), (C,): the head on raw inputs."""
        moved = delta[:, :-1] / self.scale
        return self.coef + moved, self.intercept + delta[:, -1] - moved @ self.mean

    def loss(self, delta: Floats, x: Floats, y: Labels) -> float:
        """Summed NLL of other rows."""
        coef, intercept = self.head(delta)
        return -float(log_softmax(x @ coef.T + intercept)[np.arange(len(y)), y].sum())


class MemberWeights(Problem):
    """The same with one weight a member alone: the inputs are M blocks of one column a class."""

    def __init__(self, x: Floats, y: Labels, start: Head) -> None:
        super().__init__(x, y, start)
        classes = len(start[1])
        self.size = max(float(x.std()), 1e-6)
        self.blocks = x.reshape(len(x), -1, classes) / self.size
        self.shape = (self.blocks.shape[1],)

    def moved(self, delta: Floats) -> Floats:
        return np.asarray(np.tensordot(self.blocks, delta, axes=(1, 0)))

    def gradient(self, error: Floats) -> Floats:
        return np.asarray(np.einsum("nmc,nc->m", self.blocks, error))

    def head(self, delta: Floats) -> Head:
        return self.coef + np.kron(delta / self.size, np.eye(len(self.intercept))), self.intercept
