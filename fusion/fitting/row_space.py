"""Solve the folds of a head that has few rows: each in coordinates of its own rows. There are at most as many as rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion.fitting.blocks import Splits
from fusion.fitting.shrinkage import SMALLEST_SCALE, Head
from fusion.metrics.calibration import fit_temperature
from fusion.predictions import Floats, Inputs, Labels, log_softmax, softmax

OPTIONS = {"maxiter": 300, "ftol": 1e-11, "gtol": 1e-7}
SMALLEST_SHARE = 1e-12  # of the largest eigenvalue: below it is rounding


class RowSpaceFold:
    """One fold of `ShrinkageProblem`. Its optimum is a combination of the fitted rows, because the penalty is a squared length.

    So with singular values s and vectors u and v of the standardised rows, the move D is sought as A v^T, of no more columns than
    rows. Each column is divided by the root of its curvature, so that the objective is nearly round and few steps are needed.

    Args:
        x: (n, D) inputs.
        y: (n,) labels.
        start: The head to start from.
        fitted: Numbers of the rows that are fitted.
        held_out: Numbers of the rows that are not.
    """

    def __init__(self, x: Inputs, y: Labels, start: Head, fitted: Labels, held_out: Labels) -> None:
        coef, intercept = start
        temperature = fit_temperature(x[fitted] @ coef.T + intercept, y[fitted])
        self.coef, self.intercept = coef / temperature, intercept / temperature
        self.x, self.y, self.fitted, self.held_out = x, y, fitted, held_out
        rows = x[fitted]
        self.mean = rows.mean(0, dtype=np.float64)
        self.scale = np.maximum(rows.std(0, dtype=np.float64), SMALLEST_SCALE)
        z = self._standardised(rows)
        values, vectors = np.linalg.eigh(z @ z.T if len(z) <= z.shape[1] else z.T @ z)
        is_there = values > SMALLEST_SHARE * max(values[-1], 0.0)
        self.s = np.sqrt(values[is_there])
        self.u = vectors[:, is_there] if len(z) <= z.shape[1] else z @ vectors[:, is_there] / self.s
        self.held_out_inputs = self._standardised(x[held_out]) @ self._axes(z)
        self.base, self.held_out_base = (x[numbers] @ self.coef.T + self.intercept for numbers in (fitted, held_out))
        unsure = softmax(self.base)
        self.unsure = float((unsure * (1 - unsure)).mean()) if unsure.size else 0.0
        self.one_hot = np.eye(len(self.intercept))[y[fitted]]
        self.moves = np.zeros((len(self.intercept), len(self.s) + 1))  # A, and what the intercept moves by

    def _standardised(self, rows: Inputs) -> Floats:
        return np.asarray((rows - self.mean) / self.scale, dtype=np.float64)

    def _axes(self, z: Floats) -> Floats:
        """Return v, (D, r)."""
        return np.asarray(z.T @ (self.u / self.s))

    def solve(self, penalty: float) -> None:
        """Solve for a finite penalty, from the last solution on."""
        from scipy.optimize import minimize

        count = len(self.fitted)
        curvatures = self.unsure * np.append(self.s**2 / count, 1.0) + 2 * penalty
        lengths = 1 / np.sqrt(curvatures)

        def objective(flat: Floats) -> tuple[float, Floats]:
            moves = flat.reshape(self.moves.shape) * lengths
            log_p = log_softmax(self.base + self.u @ (moves[:, :-1] * self.s).T + moves[:, -1])
            error = (np.exp(log_p) - self.one_hot) / count
            gradient = np.column_stack([(error.T @ self.u) * self.s, error.sum(0)]) + 2 * penalty * moves
            loss = float(penalty * (moves**2).sum() - (log_p * self.one_hot).sum() / count)
            return loss, (gradient * lengths).ravel()

        start = (self.moves / lengths).ravel()
        result = minimize(objective, start, method="L-BFGS-B", jac=True, options=OPTIONS)
        self.moves = np.asarray(result.x).reshape(self.moves.shape) * lengths

    def losses(self) -> Floats:
        """Return the NLL of each row that is held out."""
        log_p = log_softmax(self.held_out_base + self.held_out_inputs @ self.moves[:, :-1].T + self.moves[:, -1])
        return np.asarray(-log_p[np.arange(len(log_p)), self.y[self.held_out]])

    def head(self) -> Head:
        """Return the head (C, D), (C,) on raw inputs."""
        steps = (self._axes(self._standardised(self.x[self.fitted])) @ self.moves[:, :-1].T).T / self.scale
        return self.coef + steps, self.intercept + self.moves[:, -1] - steps @ self.mean


class RowSpaceFolds:
    """Folds of few rows, with the methods of `JointFolds`. Arguments are the same."""

    def __init__(self, x: Inputs, y: Labels, starts: Sequence[Head], splits: Splits) -> None:
        self.count = len(y)
        self.folds = [RowSpaceFold(x, y, start, *split) for start, split in zip(starts, splits, strict=True)]

    def solve(self, penalty: float) -> None:
        """Solve for a finite penalty, from the last solution on. An infinite penalty changes nothing."""
        if np.isfinite(penalty):
            for fold in self.folds:
                fold.solve(penalty)

    def losses(self) -> Floats:
        """Return the NLL of each row, (n,), by the head that was fitted without it; 0 for a row that no fold holds out."""
        losses = np.zeros(self.count)
        for fold in self.folds:
            losses[fold.held_out] = fold.losses()
        return losses

    def losses_by_fold(self) -> list[Floats]:
        """Return the NLL of each row that a fold holds out, by its head."""
        return [fold.losses() for fold in self.folds]

    def head(self, fold: int) -> Head:
        """Return the head (C, D), (C,) of a fold, on raw inputs."""
        return self.folds[fold].head()
