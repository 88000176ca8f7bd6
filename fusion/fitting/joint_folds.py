"""Solve the folds of a head as one problem: all of them share each reading of the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fusion.fitting.blocks import Splits, blocks_of
from fusion.fitting.coordinates import Coordinates, Directions
from fusion.fitting.descent import EXACT, PAST_STEPS, Objective, arrive, come_near
from fusion.fitting.shrinkage import SMALLEST_SCALE, Head
from fusion.metrics.calibration import fit_temperature
from fusion.predictions import Floats, Inputs, Labels, softmax

NEAR = 3e-8  # nats that inputs of single precision allow to come near the minimum by the objective itself
MOST_NUMBERS = 30_000_000  # of logits of the folds that are solved at once: a quarter of a gigabyte, a few times


class JointFolds:
    """Folds of `ShrinkageProblem` as one problem, whose objective is the sum of theirs.

    The optimum is that of each fold alone. What takes the time is reading the inputs, and all folds share each reading. Rows are
    kept in blocks that belong to the same folds, so that no fold computes anything of rows that it is not fitted on. Where the
    rows come in this order, the inputs are not copied.

    Args:
        x: (n, D) inputs.
        y: (n,) labels.
        starts: The head that each of the K folds starts from.
        splits: Fitted rows and held-out rows of each fold.
    """

    def __init__(self, x: Inputs, y: Labels, starts: Sequence[Head], splits: Splits) -> None:
        self.splits = splits
        order, self.blocks = blocks_of(splits, len(y))
        self.place = np.argsort(order)  # where each row is now
        is_sorted = np.array_equal(order, np.arange(len(order)))
        self.x, self.y = (x, y) if is_sorted else (x[order], y[order])
        self.classes = len(starts[0][1]) if starts else 0
        self.counts = np.array([len(fitted) for fitted, _ in splits])
        self.mean, self.scale = self._moments()
        self.starts = self._calibrated(starts)
        self.deltas = np.zeros((len(splits), self.classes, x.shape[1] + 1))
        size = self.classes * max(len(y), 2 * PAST_STEPS * x.shape[1])
        self.at_once = max(1, MOST_NUMBERS // size) if size else 1
        self.directions: Directions | None = None
        self.coordinates: Coordinates | None = None  # about the last solution

    def solve(self, penalty: float) -> None:
        """Solve for a finite penalty, from the last solution on. An infinite penalty changes nothing."""
        if not len(self.deltas) or np.isinf(penalty):
            return
        within = EXACT if self.x.dtype == np.float64 else NEAR
        there = replace(self.coordinates or self._coordinates(), penalty=penalty)
        for some in self._groups():
            self.deltas[some] = come_near(self._objective_of(some, penalty), self.deltas[some], there, within)
        self.coordinates = there = self._coordinates(penalty)
        for some in self._groups():
            self.deltas[some] = arrive(self._objective_of(some, penalty), self.deltas[some], there)

    def losses(self) -> Floats:
        """Return the NLL of each row, (n,), by the head that was fitted without it; 0 for a row that no fold holds out."""
        losses = np.zeros(len(self.y))
        for (_, held_out), of_fold in zip(self.splits, self.losses_by_fold(), strict=True):
            losses[held_out] = of_fold
        return losses

    def losses_by_fold(self) -> list[Floats]:
        """Return the NLL of each row that a fold holds out, by its head."""
        losses = np.zeros((len(self.splits), len(self.y)))
        for some in self._groups():
            base, (steps, level) = self._base(some), self._steps(some, self.deltas[some])
            for block in self.blocks:
                held = np.flatnonzero(np.isin(some, block.held_out_by))
                log_p = self._log_p(base[held], steps[held], level[held], block.rows)
                losses[some[held], block.rows] = -log_p[:, self.y[block.rows], np.arange(log_p.shape[2])]
        return [of_fold[self.place[held_out]] for of_fold, (_, held_out) in zip(losses, self.splits, strict=True)]

    def head(self, fold: int) -> Head:
        """Return the head (C, D), (C,) of a fold, on raw inputs."""
        (coef, intercept), delta = self.starts[fold], self.deltas[fold]
        steps = delta[:, :-1] / self.scale[fold]
        return coef + steps, intercept + delta[:, -1] - steps @ self.mean[fold]

    def _groups(self) -> Iterator[Labels]:
        """Yield the numbers of the folds that are solved at once."""
        for first in range(0, len(self.deltas), self.at_once):
            yield np.arange(first, min(first + self.at_once, len(self.deltas)))

    def _moments(self) -> tuple[Floats, Floats]:
        """Return the mean and the standard deviation of the inputs on the rows that each fold is fitted on: (K, D) each."""
        total, square = np.zeros((2, len(self.counts), self.x.shape[1]))
        for block in self.blocks:
            x = self.x[block.rows]
            total[block.fitted_by] += x.sum(0, dtype=np.float64)
            square[block.fitted_by] += np.einsum("nd,nd->d", x, x, dtype=np.float64)
        counts = np.maximum(self.counts, 1)[:, None]
        mean = total / counts
        return mean, np.maximum(np.sqrt(np.maximum(square / counts - mean**2, 0.0)), SMALLEST_SCALE)

    def _calibrated(self, starts: Sequence[Head]) -> list[Head]:
        """Return the start of each fold at the temperature that suits the rows that it is fitted on."""
        logits = {id(start): self.x @ start[0].T.astype(self.x.dtype) + start[1] for start in starts}  # folds may share one
        made = list[Head]()
        for start, (fitted, _) in zip(starts, self.splits, strict=True):
            rows = self.place[fitted]
            temperature = fit_temperature(logits[id(start)][rows], self.y[rows])
            made.append((start[0] / temperature, start[1] / temperature))
        return made

    def _base(self, some: Labels) -> Floats:
        """Return the logits of the starts of some folds: (k, C, n)."""
        heads = [self.starts[fold] for fold in some]
        coef = np.concatenate([head[0] for head in heads]).astype(self.x.dtype)
        base = (coef @ self.x.T).reshape(len(some), self.classes, len(self.x))
        return np.asarray(base + np.array([head[1] for head in heads])[:, :, None], dtype=np.float64)

    def _coordinates(self, penalty: float = 0.0) -> Coordinates:
        """Return coordinates that suit where the folds are now. Their directions are found only once."""
        heads = [self.head(fold) for fold in next(self._groups())]
        coef, intercept = (np.mean(parts, axis=0) for parts in zip(*heads, strict=True))
        probabilities = softmax(self.x @ coef.T.astype(self.x.dtype) + intercept)
        if self.directions is None:
            self.directions = Directions.of(self.x, self.mean[0], self.scale[0], probabilities)
        return self.directions.coordinates(probabilities, penalty)

    def _objective_of(self, some: Labels, penalty: float) -> Objective:
        """Return the sum of the objectives of some folds, with its gradient, as a function of their moves."""
        base, counts = self._base(some), self.counts[some]

        def objective(deltas: Floats) -> tuple[float, Floats]:
            loss, total = np.zeros(len(some)), np.zeros(deltas.shape[:2])
            by_input = np.zeros((*deltas.shape[:2], self.x.shape[1]))
            steps, level = self._steps(some, deltas)
            for block in self.blocks:
                fitted = np.flatnonzero(np.isin(some, block.fitted_by))
                if not len(fitted):
                    continue
                log_p = self._log_p(base[fitted], steps[fitted], level[fitted], block.rows)
                y, each = self.y[block.rows], np.arange(log_p.shape[2])
                loss[fitted] -= log_p[:, y, each].sum(1)
                error = np.exp(log_p, out=log_p)
                error[:, y, each] -= 1
                total[fitted] += error.sum(2)
                product = error.reshape(-1, len(each)).astype(self.x.dtype) @ self.x[block.rows]
                by_input[fitted] += product.reshape(len(fitted), self.classes, -1)
            by_input = (by_input - total[:, :, None] * self.mean[some][:, None]) / self.scale[some][:, None]
            gradient = np.concatenate([by_input, total[:, :, None]], axis=2) / counts[:, None, None] + 2 * penalty * deltas
            return float((loss / counts).sum() + penalty * (deltas**2).sum()), gradient

        return objective

    def _steps(self, folds: Labels, deltas: Floats) -> tuple[Inputs, Floats]:
        """Return what heads move by on raw inputs, (k, C, D) and (k, C), for moves (k, C, D + 1) of some folds."""
        steps = deltas[:, :, :-1] / self.scale[folds][:, None]
        return steps.astype(self.x.dtype), deltas[:, :, -1] - np.einsum("kcd,kd->kc", steps, self.mean[folds])

    def _log_p(self, base: Floats, steps: Inputs, level: Floats, rows: slice) -> Floats:
        """Return log-probabilities of some rows, (k, C, rows), by moved heads whose starts give `base` (k, C, n)."""
        product = steps.reshape(-1, self.x.shape[1]) @ self.x[rows].T
        logits = base[:, :, rows] + product.reshape(*level.shape, product.shape[1]) + level[:, :, None]
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        return np.asarray(logits)
