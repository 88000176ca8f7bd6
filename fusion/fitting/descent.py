"""Find the minimum of the objective of several heads, in coordinates in which it is nearly round.

There the distance to the minimum is known: a round objective is half the square of its gradient above it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fusion.fitting.coordinates import Coordinates
from fusion.predictions import Floats

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

EXACT = 2e-11  # nats that the objective of a head may be above its minimum, on average
MOST_STEPS, LAST_STEPS = 200, 8
PAST_STEPS = 10  # that L-BFGS remembers, each by two vectors
# From moves (K, C, D + 1) of K heads: the sum of their objectives, and its gradient.
Objective = Callable[[Floats], tuple[float, Floats]]


def come_near(objective: Objective, moves: Floats, there: Coordinates, within: float) -> Floats:
    """Return moves (K, C, D + 1) that are within so many nats of the minimum, by L-BFGS.

    Args:
        objective: The objective.
        moves: (K, C, D + 1) where to begin.
        there: The coordinates.
        within: How near. In single precision, what is left to gain is rounded away soon, and line searches look for it in vain.
    """
    from scipy.optimize import minimize

    turned = _Turned(objective, there, moves.shape)

    def stop_in_time(intermediate_result: OptimizeResult) -> None:  # SciPy knows a callback of this kind by the argument's name
        if turned.above <= within:
            raise StopIteration

    options = {"maxiter": MOST_STEPS, "maxcor": PAST_STEPS, "ftol": 0.0, "gtol": 0.0}
    start = there.moves(moves).ravel()
    result = minimize(turned, start, method="L-BFGS-B", jac=True, callback=stop_in_time, options=options)
    return turned.moves(np.asarray(result.x))


def arrive(objective: Objective, moves: Floats, there: Coordinates) -> Floats:
    """Return the moves at the minimum, from moves that are near it.

    A step is the gradient by the length of Barzilai and Borwein (1988): it asks for no values of the objective, and the gradient
    is less rounded than they are. Arguments are those of `come_near`.
    """
    turned = _Turned(objective, there, moves.shape)
    at, lengths = there.moves(moves), np.ones((len(moves), 1, 1))
    best = at
    gradient = turned(at.ravel())[1].reshape(moves.shape)
    lowest = turned.above
    for _ in range(LAST_STEPS):
        if lowest <= EXACT:
            break
        step = -lengths * gradient
        at, before = at + step, gradient
        gradient = turned(at.ravel())[1].reshape(moves.shape)
        if turned.above < lowest:
            best, lowest = at, turned.above
        curved = np.einsum("kcd,kcd->k", step, gradient - before)
        lengths = (np.einsum("kcd,kcd->k", step, step) / np.maximum(curved, 1e-300)).clip(0.2, 2.0)[:, None, None]
    return there.deltas(best)


class _Turned:
    """An objective in other coordinates.

    Attributes:
        above: How many nats each head was above its minimum where the objective was evaluated last, on average.
    """

    def __init__(self, objective: Objective, there: Coordinates, shape: tuple[int, ...]) -> None:
        self.objective, self.there, self.shape, self.above = objective, there, shape, np.inf

    def __call__(self, flat: Floats) -> tuple[float, Floats]:
        loss, gradient = self.objective(self.moves(flat))
        turned = self.there.gradient(gradient).ravel()
        self.above = float(turned @ turned) / 2 / self.shape[0]
        return loss, turned

    def moves(self, flat: Floats) -> Floats:
        """Return the moves (K, C, D + 1) that are these in the other coordinates."""
        return self.there.deltas(flat.reshape(self.shape))
