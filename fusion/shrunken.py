"""A linear head that pays for the distance to where it starts: what concat and stack have in common.

Minimise, over D and d, the mean NLL of start/T + D z + d, plus penalty (|D|^2 + |d|^2), with z the standardised inputs
and T the temperature that suits the start. An infinite penalty, one of the candidates, is the calibrated start itself, so
a head that can't be trusted stays where averaging stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from sklearn.model_selection import KFold

from fusion.calibration import fit_temperature
from fusion.outputs import Floats, Inputs, Labels, log_softmax

PENALTIES = (float("inf"), 10.0, 3.0, 1.0, 0.3, 0.1)  # from the start itself to nearly free
PATIENCE = 2
Head = tuple[Floats, Floats]  # coefficients (C, D) and intercept (C,)
Splits = Sequence[tuple[Labels, Labels]]
Make = Callable[[Inputs, Labels], "Problem"]


def fit_head(problem: Problem, penalty: float) -> Head:
    """The head on raw inputs."""
    return problem.head(problem.solve(penalty, np.zeros(problem.shape)))


def cross_validated(
    x: Inputs, y: Labels, make: Make, splits: Splits, penalties: Sequence[float] = PENALTIES
) -> dict[float, Floats]:
    """(n,) NLL of each row by a head that was fitted without it, by penalty: the first, the best so far, and what follows.

    From the strongest down, until it got no better PATIENCE times. Each weaker penalty starts from the solution of the one
    before it, in the same fold: they are close together.
    """
    folds = [(make(x[kept], y[kept]), out) for kept, out in splits]
    at = [np.zeros(problem.shape) for problem, _ in folds]
    found: dict[float, Floats] = {}
    lowest, worse = np.inf, 0
    for penalty in penalties:
        found[penalty] = losses = np.zeros(len(y))
        at = [problem.solve(penalty, begin) for (problem, _), begin in zip(folds, at, strict=True)]
        for (problem, out), delta in zip(folds, at, strict=True):
            losses[out] = problem.losses(delta, x[out], y[out])
        if losses.sum() < lowest:
            lowest, worse = losses.sum(), 0
        elif (worse := worse + 1) == PATIENCE:
            break
    return found


def best_penalty(losses: Mapping[float, Floats]) -> float:
    """The strongest of those with the lowest cross-validated NLL."""
    return min(losses, key=lambda penalty: (losses[penalty].sum(), -penalty))


def shuffled_splits(rows: int) -> Splits:
    """Five folds, or as many as there are rows; none of a single row, by which nothing can be judged."""
    if rows < 2:
        return []
    return list(KFold(min(5, rows), shuffle=True, random_state=0).split(np.arange(rows)))


class Problem:
    """The objective on one set of rows: (n, D) inputs, (n,) labels.

    Inputs are standardised in the algebra alone, so that nothing of their size is written; float32 ones stay float32.
    """

    shape: tuple[int, ...]

    def __init__(self, x: Inputs, y: Labels, start: Head) -> None:
        coef, intercept = start
        base = x @ coef.T + intercept
        temperature = fit_temperature(base, y)
        self.coef, self.intercept, self.base = coef / temperature, intercept / temperature, base / temperature
        self.x, self.one_hot = x, np.eye(len(intercept))[y]
        self.mean = x.mean(0, dtype=np.float64)
        square = np.einsum("nd,nd->d", x, x, dtype=np.float64) / len(x)
        self.scale = np.maximum(np.sqrt(np.maximum(square - self.mean**2, 0.0)), 1e-6)
        self.shape = (len(intercept), x.shape[1] + 1)

    def solve(self, penalty: float, begin: Floats) -> Floats:
        """The move from the start, of this problem's shape. An infinite penalty gives zeros."""
        if np.isinf(penalty):
            return np.zeros(self.shape)

        def objective(flat: Floats) -> tuple[float, Floats]:
            delta = flat.reshape(self.shape)
            log_p = log_softmax(self.base + self.moved(delta))
            gradient = self.gradient((np.exp(log_p) - self.one_hot) / len(self.x)) + 2 * penalty * delta
            return float(-(log_p * self.one_hot).sum() / len(self.x) + penalty * (delta**2).sum()), gradient.ravel()

        found = minimize(objective, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-7})
        return np.asarray(found.x).reshape(self.shape)

    def moved(self, delta: Floats) -> Floats:
        """(C, D + 1), the columns of D and then d -> (n, C), what the logits change by."""
        steps = delta[:, :-1] / self.scale
        return np.asarray(self.x @ steps.T.astype(self.x.dtype) + (delta[:, -1] - steps @ self.mean))

    def gradient(self, error: Floats) -> Floats:
        """Of a loss whose derivative by the logits is `error` (n, C)."""
        total = error.sum(0)[:, None]
        by_input = (error.T.astype(self.x.dtype) @ self.x - total * self.mean) / self.scale
        return np.concatenate([by_input, total], axis=1)

    def head(self, delta: Floats) -> Head:
        """(C, D), (C,): the head on raw inputs."""
        moved = delta[:, :-1] / self.scale
        return self.coef + moved, self.intercept + delta[:, -1] - moved @ self.mean

    def losses(self, delta: Floats, x: Inputs, y: Labels) -> Floats:
        """(n,) NLL of other rows."""
        coef, intercept = self.head(delta)
        return np.asarray(-log_softmax(x @ coef.T.astype(x.dtype) + intercept)[np.arange(len(y)), y])


class MemberWeights(Problem):
    """The same with one weight a member alone: the inputs are M blocks of one column a class."""

    def __init__(self, x: Inputs, y: Labels, start: Head) -> None:
        super().__init__(x, y, start)
        classes = len(start[1])
        self.size = max(float(x.std()), 1e-6)
        members = x.reshape(len(x), -1, classes).transpose(1, 0, 2)
        self.columns = members.reshape(len(members), -1) / self.size  # (M, n * C): both products below run along memory
        self.shape = (len(self.columns),)

    def moved(self, delta: Floats) -> Floats:
        return np.asarray((delta @ self.columns).reshape(self.base.shape))

    def gradient(self, error: Floats) -> Floats:
        return np.asarray(self.columns @ error.ravel())

    def head(self, delta: Floats) -> Head:
        return self.coef + np.kron(delta / self.size, np.eye(len(self.intercept))), self.intercept
