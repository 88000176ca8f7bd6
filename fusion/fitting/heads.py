"""Fit a linear head with a penalty on its distance from a start, for concat and stack.

A head minimises, over D and d, the mean NLL of start/T + D z + d plus penalty * (|D|^2 + |d|^2). Here z are the standardised
inputs, and T is the start's temperature on the same rows. An infinite penalty, one of the candidates, gives the calibrated
start, so an unreliable head falls back to averaging.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fusion.metrics.calibration import fit_temperature
from fusion.predictions import Floats, Inputs, Labels, log_softmax, softmax

MIN_DIRECTIONS = 96
MAX_PARAMETERS = 20_000  # per head: fewer directions if there are many classes
SMALLEST_SCALE = 1e-6  # lower bound on the scale that inputs are divided by
SMALLEST_SPREAD = 1e-2  # the same, relative to an input's mean: smaller variation drowns in the rounding errors of float32
LBFGS = {"maxiter": 200, "ftol": 1e-6, "gtol": 1e-7}  # a tenth of these tolerances changes held-out NLL by less than 1e-4
Split = tuple[Labels, Labels]  # fitted and held-out rows
Head = tuple[Floats, Floats]  # coefficients (C, D) and intercept (C,) on raw inputs


@dataclass(frozen=True)
class Start:
    """The head that a fit starts from.

    Attributes:
        coef: (C, D) coefficients on raw inputs.
        intercept: (C,).
        base: (n, C) its logits on all rows of the problem; None to compute them from the inputs. Out-of-fold rows need them,
            because the head itself saw these rows.
    """

    coef: Floats
    intercept: Floats
    base: Floats | None = None

    def logits(self, x: Inputs, rows: Labels) -> Inputs:
        """Return the logits (m, C) of some rows of the inputs (n, D)."""
        if self.base is not None:
            return self.base[rows].astype(x.dtype)
        return np.asarray(x[rows] @ self.coef.T.astype(x.dtype) + self.intercept.astype(x.dtype))


class HeadProblem(ABC):
    """The objective of a head on the rows that it is fitted on, solved for one penalty after another.

    Args:
        x: (n, D) inputs.
        y: (n,) labels.
        start: The head to start from.
        split: Positions of the fitted rows and of the held-out rows.

    Attributes:
        start: The head that it starts from.
        temperature: The temperature of the start.
    """

    moves: Floats  # the last solution; each subclass has its own parameters
    u: Inputs  # the inputs in the form that `change` takes, and those of the held-out rows
    held_out_u: Inputs

    def __init__(self, x: Inputs, y: Labels, start: Start, split: Split) -> None:
        fitted, held_out = split
        base = start.logits(x, fitted)
        self.start, self.temperature = start, fit_temperature(base, y[fitted])
        self.coef, self.intercept = start.coef / self.temperature, start.intercept / self.temperature
        self.base, self.held_out_base = (
            np.asarray(logits / x.dtype.type(self.temperature)) for logits in (base, start.logits(x, held_out))
        )
        self.labels, self.held_out_labels = y[fitted], y[held_out]

    @abstractmethod
    def change(self, u: Inputs, moves: Floats) -> Inputs:
        """Return the change of the logits, (n, C), for `moves`."""

    @abstractmethod
    def gradient(self, u: Inputs, error: Inputs) -> Floats:
        """Return the gradient with respect to `moves`, from the gradient with respect to the logits, (n, C)."""

    @abstractmethod
    def head(self) -> Head:
        """Return the head of the last solution."""

    def solve(self, penalty: float) -> None:
        """Minimise the objective for a penalty, from the last solution. An infinite penalty changes nothing.

        Each parameter is scaled by the root of its curvature at the start, so that L-BFGS takes few steps.
        """
        if np.isinf(penalty):
            return
        from scipy.optimize import minimize

        count, rows = len(self.labels), np.arange(len(self.labels))
        probabilities = softmax(self.base)
        curvature = self.gradient(self.u**2, probabilities * (1 - probabilities)) / count + 2 * penalty
        scale = 1 / np.sqrt(curvature)

        def objective(flat: Floats) -> tuple[float, Floats]:
            moves = flat.reshape(scale.shape) * scale
            log_p = log_softmax(self.base + self.change(self.u, moves))
            loss = float(penalty * (moves**2).sum() - log_p[rows, self.labels].mean(dtype=np.float64))
            error = np.exp(log_p, out=log_p)
            error[rows, self.labels] -= 1
            return loss, ((self.gradient(self.u, error) / count + 2 * penalty * moves) * scale).ravel()

        start = (self.moves / scale).ravel()
        result = minimize(objective, start, method="L-BFGS-B", jac=True, options=LBFGS)
        self.moves = np.asarray(result.x).reshape(scale.shape) * scale

    def losses(self) -> Floats:
        """Return the NLL of each held-out row, (h,), in nats."""
        log_p = log_softmax(self.held_out_base + self.change(self.held_out_u, self.moves))
        return np.asarray(-log_p[np.arange(len(log_p)), self.held_out_labels], dtype=np.float64)


class MatrixProblem(HeadProblem):
    """A head with one coefficient per class and input, searched within the inputs' principal directions.

    Inputs differ along few directions; along all others the penalty keeps the head at its start. With 96 directions of 1,536
    features, the NLL of held-out rows changes by 1e-4 or less (`make table FEATURES=DIR`). There are at least as many directions
    as the members have logits, unless the head would be too large.

    Args:
        x: (n, D) inputs.
        y: (n,) labels.
        start: The head to start from.
        split: Positions of the fitted rows and of the held-out rows.
        members: Number of members that the inputs come from.
    """

    def __init__(self, x: Inputs, y: Labels, start: Start, split: Split, members: int = 1) -> None:
        super().__init__(x, y, start, split)
        fitted, held_out = split
        rows, classes = x[fitted], len(self.intercept)
        self.mean = rows.mean(0)
        self.scale = np.maximum(rows.std(0), np.maximum(abs(self.mean) * SMALLEST_SPREAD, SMALLEST_SCALE).astype(x.dtype))
        z = (rows - self.mean) / self.scale
        self.directions = principal_directions(z, max(MIN_DIRECTIONS, min(members * classes, MAX_PARAMETERS // classes)))
        self.u = z @ self.directions.T
        self.held_out_u = ((x[held_out] - self.mean) / self.scale) @ self.directions.T
        self.moves = np.zeros((classes, len(self.directions) + 1))  # D along the directions, and d

    def change(self, u: Inputs, moves: Floats) -> Inputs:
        """Return the change of the logits, (n, C), for moves (C, r + 1)."""
        steps = moves.astype(u.dtype)
        return np.asarray(u @ steps[:, :-1].T + steps[:, -1])

    def gradient(self, u: Inputs, error: Inputs) -> Floats:
        """Return the gradient (C, r + 1)."""
        return np.column_stack([error.T @ u, error.sum(0)]).astype(np.float64)

    def head(self) -> Head:
        """Return the head of the last solution."""
        steps = self.moves[:, :-1] @ self.directions / self.scale
        return self.coef + steps, self.intercept + self.moves[:, -1] - steps @ self.mean


class WeightsProblem(HeadProblem):
    """A head with one weight per member. Its inputs (n, M * C) hold one block of classes per member."""

    def __init__(self, x: Inputs, y: Labels, start: Start, split: Split) -> None:
        super().__init__(x, y, start, split)
        fitted, held_out = split
        self.size = max(float(x[fitted].std()), SMALLEST_SCALE)
        self.u, self.held_out_u = self._by_member(x[fitted]), self._by_member(x[held_out])
        self.moves = np.zeros(len(self.u))

    def _by_member(self, x: Inputs) -> Inputs:
        """Return inputs (n, M * C) as (M, n * C)."""
        classes = len(self.intercept)
        members = x.reshape(len(x), x.shape[1] // classes, classes).transpose(1, 0, 2)
        return np.asarray(members.reshape(len(members), len(x) * classes) / x.dtype.type(self.size))

    def change(self, u: Inputs, moves: Floats) -> Inputs:
        """Return the change of the logits, (n, C), for moves (M,)."""
        return np.asarray((moves.astype(u.dtype) @ u).reshape(-1, len(self.intercept)))

    def gradient(self, u: Inputs, error: Inputs) -> Floats:
        """Return the gradient (M,)."""
        return np.asarray(u @ error.ravel(), dtype=np.float64)

    def head(self) -> Head:
        """Return the head of the last solution."""
        return self.coef + np.kron(self.moves / self.size, np.eye(len(self.intercept))), self.intercept


def principal_directions(z: Inputs, most: int) -> Inputs:
    """Return the orthonormal principal directions of rows (n, D): (r, D), with r <= most."""
    from sklearn.utils.extmath import randomized_svd

    matrix = z.T @ z if len(z) > z.shape[1] else z  # the Gram matrix has the same directions, and is smaller
    _, sizes, directions = randomized_svd(matrix, min(most, *z.shape), n_iter=2, random_state=0)
    return np.asarray(directions[sizes > SMALLEST_SCALE**2 * sizes.max(initial=0)], dtype=z.dtype)
