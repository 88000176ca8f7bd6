"""Compute each member's contribution to the vote: its Shapley value, in accuracy and in NLL (Shapley 1953).

It is the mean gain from adding the member to a vote, over all orders of adding members. The values sum to the gain of the full
vote over the mean single member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import factorial

import numpy as np
from numpy.typing import NDArray

from fusion.metrics.calibration import fit_temperature, log_probabilities
from fusion.metrics.scores import accuracy_and_nll_losses, evenly_drawn, mean_interval
from fusion.predictions import Floats, Labels
from fusion.results import Contribution

MAX_EXACT_MEMBERS = 12  # members; up to this number, all subsets (4,096 votes) are evaluated
MAX_PROBABILITIES = 250_000_000  # probabilities to compute over all votes: a few seconds
EVALUATIONS = 12  # of the NLL, for fitting one temperature
TOLERANCE = 0.01  # of log T: it changes the NLL by less than the last digit shown
ORDERS = 200  # about this many orders are drawn for more members

Subset = tuple[int, ...]


def contributions(
    names: Sequence[str], probabilities: Floats, labels: Labels, groups: Labels | None = None
) -> dict[str, Contribution]:
    """Return each member's contribution to the vote.

    Each subset of members is calibrated by its own temperature, as every candidate is. With a shared temperature, a member's
    value would partly measure how far its own temperature is from the shared one.

    Args:
        names: Names of the members.
        probabilities: (M, n, C) of the members, on rows that no member trained on.
        labels: (n,).
        groups: (n,) group of each row; None without groups.
    """
    votes = 2 ** len(names) if len(names) <= MAX_EXACT_MEMBERS else ORDERS * len(names)
    most = MAX_PROBABILITIES // (votes * EVALUATIONS * probabilities.shape[-1])
    rows = evenly_drawn(len(labels), most)  # all rows may take minutes
    probabilities, labels, groups = probabilities[:, rows], labels[rows], None if groups is None else groups[rows]

    def losses(vote: Floats) -> Floats:
        temperature = fit_temperature(log_probabilities(vote), labels, TOLERANCE)
        return accuracy_and_nll_losses(vote, labels, temperature)

    singles = [losses(p) for p in probabilities]
    mean = np.mean(singles, axis=0)

    def value(subset: Subset) -> Floats:
        if len(subset) < 2:
            return -(singles[subset[0]] if subset else mean)
        return -losses(probabilities[list(subset)].mean(0))

    return {
        name: Contribution(
            accuracy=float(accuracy.mean()),
            accuracy_interval=mean_interval(accuracy, groups),
            nll=float(nll.mean()),
            nll_interval=mean_interval(nll, groups),
        )
        for name, (accuracy, nll) in zip(names, shapley_values(value, len(names)), strict=True)
    }


def shapley_values(value: Callable[[Subset], Floats], members: int) -> Floats:
    """Return the Shapley value of each member, (M, ...): exact for few members, sampled for many.

    Args:
        value: Returns the value, an array, of a subset: member positions in ascending order, or () for the baseline.
        members: Number of members.
    """
    if members <= MAX_EXACT_MEMBERS:
        return _exact(value, members)
    return _sampled(value, members)


def _exact(value: Callable[[Subset], Floats], members: int) -> Floats:
    total: Floats = np.zeros((members, *value(()).shape))
    for subset, weights in _subsets(members):
        total += np.multiply.outer(weights, value(subset))
    return total


def _subsets(members: int) -> Iterator[tuple[Subset, Floats]]:
    """Yield every subset with the weight (M,) of its value in each member's Shapley value."""
    for bits in range(2**members):
        is_in: NDArray[np.bool_] = np.array([bool(bits >> i & 1) for i in range(members)])
        size = int(is_in.sum())
        weights = np.zeros(members)
        if size:
            weights[is_in] = factorial(size - 1) * factorial(members - size) / factorial(members)
        if size < members:
            weights[~is_in] = -factorial(size) * factorial(members - size - 1) / factorial(members)
        yield tuple(np.flatnonzero(is_in).tolist()), weights


def _sampled(value: Callable[[Subset], Floats], members: int) -> Floats:
    """Average over drawn orders and all their rotations, so that each member takes each position equally often."""
    draw, start = np.random.default_rng(0), value(())
    total: Floats = np.zeros((members, *start.shape))
    rounds = max(2, ORDERS // members)
    for _ in range(rounds):
        order = draw.permutation(members)
        for shift in range(members):
            before, rotated = start, np.roll(order, shift)
            for k, member in enumerate(rotated):
                after = value(tuple(sorted(rotated[: k + 1].tolist())))
                total[member] += after - before
                before = after
    return total / (rounds * members)
