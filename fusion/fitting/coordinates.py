"""Coordinates in which the objective of a head is nearly round, so that few steps lead to its minimum.

The minimum is the same in any coordinates. Inputs differ along few directions, and along all others the penalty makes the
curvature. So the Hessian is computed within these directions, and outside of them it is taken for the penalty's alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion.predictions import Floats, Inputs

MOST_DIRECTIONS, FEWEST_DIRECTIONS = 48, 8
ENOUGH_ROWS = 5000  # to know a Hessian well enough
MOST_PARAMETERS = 1000  # of one Hessian for all classes; where it had more, all classes have the same small one


@dataclass(frozen=True)
class Directions:
    """The directions along which inputs differ most, each row weighted by how unsure its answer is.

    Attributes:
        vectors: (r, D) orthonormal.
        along: (rows, r + 1) what each of some rows measures along them, and ones for the intercept.
        every: Which rows these are: each of so many.
    """

    vectors: Floats
    along: Floats
    every: int

    @classmethod
    def of(cls, x: Inputs, mean: Floats, scale: Floats, probabilities: Floats) -> Directions:
        """Find the directions.

        Args:
            x: (n, D) inputs.
            mean: (D,) what is subtracted from them.
            scale: (D,) what they are divided by then.
            probabilities: (n, C) about those at the minimum.
        """
        from sklearn.utils.extmath import randomized_svd

        every = max(1, len(x) // ENOUGH_ROWS)
        x, probabilities = x[::every], probabilities[::every]
        z = (x - mean.astype(np.float32)) / scale.astype(np.float32)
        unsure = np.sqrt((probabilities * (1 - probabilities)).mean(1))
        weighted = z * unsure[:, None].astype(np.float32)
        of_each = MOST_PARAMETERS // probabilities.shape[1] - 1
        count = min(of_each, MOST_DIRECTIONS) if of_each >= FEWEST_DIRECTIONS else MOST_DIRECTIONS
        _, _, vectors = randomized_svd(weighted, min(count, *x.shape), n_iter=3, random_state=0)
        return cls(np.asarray(vectors, dtype=np.float64), np.column_stack([z @ vectors.T, np.ones(len(z))]), every)

    def coordinates(self, probabilities: Floats, penalty: float) -> Coordinates:
        """Return coordinates for a penalty, where the rows have about these probabilities (n, C)."""
        probabilities = probabilities[:: self.every]
        classes, size = probabilities.shape[1], self.along.shape[1]
        if classes * size > MOST_PARAMETERS:
            hessian = self._moments((probabilities * (1 - probabilities)).mean(1))
        else:
            blocks = np.zeros((classes, size, classes, size))
            for one in range(classes):
                for other in range(one + 1):
                    block = self._moments(probabilities[:, one] * ((one == other) - probabilities[:, other]))
                    blocks[one, :, other] = blocks[other, :, one] = block
            hessian = blocks.reshape(classes * size, -1)
        values, axes = np.linalg.eigh(hessian)
        return Coordinates(self.vectors, axes, np.maximum(values, 0.0), penalty)

    def _moments(self, weights: Floats) -> Floats:
        return np.asarray((self.along * weights[:, None]).T @ self.along / len(self.along))


@dataclass(frozen=True)
class Coordinates:
    """Coordinates for moves (K, C, D + 1) of the heads of K folds: the root of the Hessian away from those of the problem.

    Attributes:
        directions: (r, D) the directions within which the Hessian is known.
        axes: (S, S) the eigenvectors of the Hessian without a penalty: for C (r + 1) parameters, or for the r + 1 of each class.
        values: (S,) its eigenvalues.
        penalty: The penalty.
    """

    directions: Floats
    axes: Floats
    values: Floats
    penalty: float

    def deltas(self, moves: Floats) -> Floats:
        """Return what moves in these coordinates are in those of the problem."""
        return self._times_hessian(moves, -0.5)

    def moves(self, deltas: Floats) -> Floats:
        """Return the opposite of `deltas`."""
        return self._times_hessian(deltas, 0.5)

    def gradient(self, gradient: Floats) -> Floats:
        """Return a gradient of the problem in these coordinates. Their map is symmetric, so it is that of moves."""
        return self.deltas(gradient)

    def _times_hessian(self, values: Floats, power: float) -> Floats:
        """Return (K, C, D + 1) values, multiplied by a power of the Hessian."""
        within = np.concatenate([values[:, :, :-1] @ self.directions.T, values[:, :, -1:]], axis=2)
        outside = (2 * self.penalty) ** power
        rows = within.reshape(len(values), -1, len(self.values)) @ self.axes
        rows = (rows * (self.values + 2 * self.penalty) ** power) @ self.axes.T
        added = rows.reshape(within.shape) - outside * within
        result = outside * values
        result[:, :, :-1] += added[:, :, :-1] @ self.directions
        result[:, :, -1] += added[:, :, -1]
        return np.asarray(result)
