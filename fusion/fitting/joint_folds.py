"""Solve the folds of a head as one problem: all of them share each reading of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusion.fitting.shrinkage import SMALLEST_SCALE, Head
from fusion.metrics.calibration import fit_temperature
from fusion.predictions import Floats, Inputs, Labels, log_softmax, softmax

TOLERANCE = 1e-9  # relative, of the folds' objectives together
MOST_STEPS, MANY_STEPS = 200, 15
Splits = Sequence[tuple[Labels, Labels]]


@dataclass(frozen=True)
class Coordinates:
    """Coordinates in which the objective is nearly round, so that few steps lead to its optimum.

    They are those of the Gram matrix of the inputs, each row weighted by how unsure the answer is: about the Hessian. One such
    matrix serves all folds and all penalties, for the optimum is the same in any coordinates.

    Attributes:
        axes: (D, D) float32, the eigenvectors.
        curvatures: (D + 1,) the eigenvalues, and the curvature along the intercept.
        scales: (K, 1, D + 1) what a move along each of them is multiplied by, in each fold.
    """

    axes: Inputs
    curvatures: Floats
    scales: Floats

    @classmethod
    def of(cls, z: Inputs, probabilities: Floats) -> Coordinates:
        """Return the coordinates for standardised inputs (n, D) and probabilities (n, C) that are about those at the optimum."""
        unsure = (probabilities * (1 - probabilities)).mean(1)
        z = z.astype(np.float32)
        gram = (z * unsure[:, None].astype(np.float32)).T @ z / np.float32(len(z))
        curvatures, axes = np.linalg.eigh(gram)
        return cls(axes, np.append(np.maximum(curvatures, 0.0).astype(np.float64), unsure.mean()), np.ones((1, 1, len(gram) + 1)))

    def at(self, penalties: Floats) -> Coordinates:
        """Return the coordinates for the penalty (K, 1, 1) of each fold."""
        return replace(self, scales=1 / np.sqrt(self.curvatures + 2 * penalties))

    def deltas(self, moves: Floats) -> Floats:
        """Return what moves (K, C, D + 1) in these coordinates are in those of the problem."""
        return self._turned(moves * self.scales, self.axes.T)

    def moves(self, deltas: Floats) -> Floats:
        """Return the opposite of `deltas`."""
        return self._turned(deltas, self.axes) / self.scales

    def gradient(self, gradient: Floats) -> Floats:
        """Return a gradient (K, C, D + 1) of the problem in these coordinates."""
        return self._turned(gradient, self.axes) * self.scales

    @staticmethod
    def _turned(values: Floats, axes: Inputs) -> Floats:
        turned = (values[:, :, :-1].reshape(-1, len(axes)).astype(np.float32) @ axes).astype(np.float64)
        return np.concatenate([turned.reshape(*values.shape[:2], -1), values[:, :, -1:]], axis=2)


class JointFolds:
    """Folds of `ShrinkageProblem` as one problem, whose objective is the sum of theirs.

    The optimum is that of each fold alone. What takes the time is reading the inputs, and all folds share each reading. Rows that
    a fold holds out have no weight in its part of the objective.

    Args:
        x: (n, D) inputs.
        y: (n,) labels.
        starts: The head that each of the K folds starts from.
        splits: Fitted rows and held-out rows of each fold.
    """

    def __init__(self, x: Inputs, y: Labels, starts: Sequence[Head], splits: Splits) -> None:
        self.x, self.y, self.starts = x, y, list[Head]()
        base = list[Floats]()
        logits = {id(start): x @ start[0].T + start[1] for start in starts}  # folds of one part have one start
        for start, (fitted, _) in zip(starts, splits, strict=True):
            temperature = fit_temperature(logits[id(start)][fitted], y[fitted])
            self.starts.append((start[0] / temperature, start[1] / temperature))
            base.append(logits[id(start)] / temperature)
        classes = len(starts[0][1]) if starts else 0
        self.one_hot = np.eye(classes)[y] if classes else np.zeros((len(y), 0))
        self.held_out = [held_out for _, held_out in splits]
        self.base = np.array(base)  # (K, n, C)
        self.weights = np.zeros((len(splits), len(y)))
        for weights, (fitted, _) in zip(self.weights, splits, strict=True):
            weights[fitted] = 1 / len(fitted)
        self.mean = self.weights @ x
        variance = np.maximum(self.weights @ np.square(x, dtype=np.float64) - self.mean**2, 0.0)
        self.scale = np.maximum(np.sqrt(variance), SMALLEST_SCALE)
        self.deltas = np.zeros((len(splits), classes, x.shape[1] + 1))
        self.coordinates: Coordinates | None = None  # made where plain ones take many steps

    def solve(self, penalty: float | Floats) -> None:
        """Solve for a finite penalty, or for one of each fold, from the last solution on. An infinite penalty changes nothing."""
        if not len(self.deltas) or np.isinf(penalty).any():
            return
        penalties = np.broadcast_to(penalty, len(self.deltas))[:, None, None]
        from scipy.optimize import minimize

        options = {"maxiter": MOST_STEPS, "ftol": TOLERANCE}
        there = self.coordinates.at(penalties) if self.coordinates else None

        def objective(flat: Floats) -> tuple[float, Floats]:
            if there is None:
                return self._objective(flat, penalties)
            loss, gradient = self._objective(there.deltas(flat.reshape(self.deltas.shape)).ravel(), penalties)
            return loss, there.gradient(gradient.reshape(self.deltas.shape)).ravel()

        start = self.deltas if there is None else there.moves(self.deltas)
        result = minimize(objective, start.ravel(), method="L-BFGS-B", jac=True, options=options)
        found = np.asarray(result.x).reshape(self.deltas.shape)
        self.deltas = found if there is None else there.deltas(found)
        is_worth_it = len(self.x) > self.x.shape[1]  # with fewer rows the steps are cheaper than the coordinates
        if self.coordinates is None and result.nfev > MANY_STEPS and is_worth_it:
            mean, scale = self.mean[0].astype(self.x.dtype), self.scale[0].astype(self.x.dtype)
            self.coordinates = Coordinates.of((self.x - mean) / scale, softmax(self.base[0]))

    def begin_near(self, others: JointFolds, groups: Sequence[Labels]) -> None:
        """Begin each fold at the mean of the solutions of a group of other folds of the same rows, and in their coordinates."""
        self.deltas = np.stack([others.deltas[group].mean(0) for group in groups])
        self.coordinates = others.coordinates

    def _objective(self, flat: Floats, penalties: Floats) -> tuple[float, Floats]:
        """Return the sum of the folds' objectives, and its gradient."""
        deltas = flat.reshape(self.deltas.shape)
        log_p = log_softmax(self.base + self._moved(deltas))
        of_label = log_p[:, np.arange(len(self.y)), self.y]
        error = (np.exp(log_p) - self.one_hot) * self.weights[:, :, None]
        total = error.sum(1)[:, :, None]
        by_input = self._by_input(error) - total * self.mean[:, None]
        gradient = np.concatenate([by_input / self.scale[:, None], total], axis=2) + 2 * penalties * deltas
        return float((penalties * deltas**2).sum() - (of_label * self.weights).sum()), gradient.ravel()

    def _moved(self, deltas: Floats) -> Floats:
        """Return what the logits change by, (K, n, C), for moves (K, C, D + 1)."""
        steps = deltas[:, :, :-1] / self.scale[:, None]
        product = self.x @ steps.reshape(-1, self.x.shape[1]).T.astype(self.x.dtype)
        by_fold = product.reshape(len(self.x), *deltas.shape[:2]).transpose(1, 0, 2)
        return np.asarray(by_fold + (deltas[:, :, -1] - np.einsum("kcd,kd->kc", steps, self.mean))[:, None])

    def _by_input(self, error: Floats) -> Floats:
        """Return the products of the error (K, n, C) with the inputs, (K, C, D)."""
        flat = error.transpose(0, 2, 1).reshape(-1, len(self.x)).astype(self.x.dtype)
        return np.asarray((flat @ self.x).reshape(len(error), -1, self.x.shape[1]), dtype=np.float64)

    def losses(self) -> Floats:
        """Return the NLL of each row, (n,), by the head that was fitted without it; 0 for a row that no fold holds out."""
        losses = np.zeros(len(self.y))
        for held_out, of_fold in zip(self.held_out, self.losses_by_fold(), strict=True):
            losses[held_out] = of_fold
        return losses

    def losses_by_fold(self) -> list[Floats]:
        """Return the NLL of each row that a fold holds out, by its head."""
        if not self.held_out:
            return []
        log_p = log_softmax(self.base + self._moved(self.deltas))
        return [-fold[held_out, self.y[held_out]] for fold, held_out in zip(log_p, self.held_out, strict=True)]

    def heads(self) -> list[Head]:
        """Return the head (C, D), (C,) of each fold, on raw inputs."""
        steps = self.deltas[:, :, :-1] / self.scale[:, None]
        moved = self.deltas[:, :, -1] - np.einsum("kcd,kd->kc", steps, self.mean)
        return [(coef + step, intercept + move) for (coef, intercept), step, move in zip(self.starts, steps, moved, strict=True)]


def calibrated(start: Head, x: Inputs, y: Labels, rows: Labels) -> Head:
    """Return a head at the temperature that suits these rows."""
    coef, intercept = start
    temperature = fit_temperature(x[rows] @ coef.T + intercept, y[rows])
    return coef / temperature, intercept / temperature
