"""Fit a linear head that is penalised for the distance to its start: what concat and stack have in common.

It minimises, over D and d, the mean NLL of start/T + D z + d, plus penalty (|D|^2 + |d|^2), with z the standardised inputs and T
the temperature that suits the start. An infinite penalty, one of the candidates, is the calibrated start itself. So a head that
can't be trusted stays where averaging stands.
"""

from __future__ import annotations

import numpy as np

from fusion.metrics.calibration import fit_temperature
from fusion.predictions import Floats, Inputs, Labels, log_softmax

SMALLEST_SCALE = 1e-6  # of an input, which is divided by it
Head = tuple[Floats, Floats]  # coefficients (C, D) and intercept (C,)


def solve_head(problem: ShrinkageProblem, penalty: float) -> Head:
    """Return the head on raw inputs for one penalty."""
    return problem.head(problem.solve(penalty, np.zeros(problem.shape)))


class ShrinkageProblem:
    """The objective on one set of rows.

    Inputs are standardised in the algebra alone, so that nothing of their size is written; float32 inputs stay float32.

    Args:
        x: (n, D) inputs.
        y: (n,) labels.
        start: The head to start from.
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
        self.scale = np.maximum(np.sqrt(np.maximum(square - self.mean**2, 0.0)), SMALLEST_SCALE)
        self.shape = (len(intercept), x.shape[1] + 1)

    def solve(self, penalty: float, start: Floats) -> Floats:
        """Return the move from the start for a penalty, in this problem's shape. An infinite penalty gives zeros."""
        if np.isinf(penalty):
            return np.zeros(self.shape)

        def objective(flat: Floats) -> tuple[float, Floats]:
            delta = flat.reshape(self.shape)
            log_p = log_softmax(self.base + self.delta_logits(delta))
            gradient = self.gradient((np.exp(log_p) - self.one_hot) / len(self.x)) + 2 * penalty * delta
            return float(-(log_p * self.one_hot).sum() / len(self.x) + penalty * (delta**2).sum()), gradient.ravel()

        from scipy.optimize import minimize

        result = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": 1e-7})
        return np.asarray(result.x).reshape(self.shape)

    def delta_logits(self, delta: Floats) -> Floats:
        """Return what the logits change by, (n, C), for a move (C, D + 1): the columns of D and then d."""
        steps = delta[:, :-1] / self.scale
        return np.asarray(self.x @ steps.T.astype(self.x.dtype) + (delta[:, -1] - steps @ self.mean))

    def gradient(self, error: Floats) -> Floats:
        """Return the gradient of a loss whose derivative by the logits is `error` (n, C)."""
        total = error.sum(0)[:, None]
        by_input = (error.T.astype(self.x.dtype) @ self.x - total * self.mean) / self.scale
        return np.concatenate([by_input, total], axis=1)

    def head(self, delta: Floats) -> Head:
        """Return the head (C, D), (C,) on raw inputs for a move."""
        steps = delta[:, :-1] / self.scale
        return self.coef + steps, self.intercept + delta[:, -1] - steps @ self.mean

    def losses(self, delta: Floats, x: Inputs, y: Labels) -> Floats:
        """Return the NLL of other rows, (n,), for a move."""
        coef, intercept = self.head(delta)
        return np.asarray(-log_softmax(x @ coef.T.astype(x.dtype) + intercept)[np.arange(len(y)), y])


class MemberWeightsProblem(ShrinkageProblem):
    """The objective with one weight per member alone: the inputs are M blocks of one column per class."""

    def __init__(self, x: Inputs, y: Labels, start: Head) -> None:
        super().__init__(x, y, start)
        classes = len(start[1])
        self.size = max(float(x.std()), SMALLEST_SCALE)
        members = x.reshape(len(x), -1, classes).transpose(1, 0, 2)
        self.columns = members.reshape(len(members), -1) / self.size  # (M, n * C): both products below run along memory
        self.shape = (len(self.columns),)

    def delta_logits(self, delta: Floats) -> Floats:
        """Return what the logits change by, (n, C), for a move (M,)."""
        return np.asarray((delta @ self.columns).reshape(self.base.shape))

    def gradient(self, error: Floats) -> Floats:
        """Return the gradient (M,) of a loss whose derivative by the logits is `error` (n, C)."""
        return np.asarray(self.columns @ error.ravel())

    def head(self, delta: Floats) -> Head:
        """Return the head (C, D), (C,) on raw inputs for a move (M,)."""
        return self.coef + np.kron(delta / self.size, np.eye(len(self.intercept))), self.intercept
