"""Weight members: a convex combination of their probabilities, with weights fitted on *fuse*.

There are three candidates: uniform weights; NLL-optimal weights, a convex problem solved by EM for mixture weights; and greedy
selection with replacement (Caruana et al. 2004). Inner cross-validation chooses; uniform weights stay unless beaten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from fusion.fitting.cross_validation import splits_of
from fusion.fitting.heads import Split
from fusion.interface import FUSIONS, Description
from fusion.methods.vote import Vote
from fusion.metrics.calibration import TINY
from fusion.predictions import Floats, FusionInputs, Predictions, softmax

ROUNDS = 40
NEGLIGIBLE = 1e-4


def uniform(likelihood: Floats) -> Floats:
    """Return equal weights (M,). `likelihood` (M, n) is each member's probability of each row's label."""
    return np.full(len(likelihood), 1 / len(likelihood))


def optimal(likelihood: Floats) -> Floats:
    """Return the weights on the simplex with the lowest NLL, (M,).

    EM from uniform weights finds them: no step raises the NLL, and the problem is convex.
    """
    weights = uniform(likelihood)
    for _ in range(5000):
        updated = weights * (likelihood @ (1 / np.maximum(weights @ likelihood, 1e-300))) / likelihood.shape[1]
        if np.abs(updated - weights).max() < 1e-9:
            break
        weights = updated
    weights = np.where(weights < NEGLIGIBLE, 0.0, weights)
    return np.asarray(weights / weights.sum())


def greedy(likelihood: Floats) -> Floats:
    """Return weights (M,) by greedy selection: add, with replacement, the member that lowers NLL most.

    The best prefix of the selection is used. Ties go to members already selected.
    """
    counts = np.zeros(len(likelihood))
    total = np.zeros_like(likelihood[0])
    best, best_loss = counts, np.inf
    for size in range(1, ROUNDS + 1):
        losses = -np.log(np.maximum((total + likelihood) / size, TINY)).mean(1)
        tied = np.flatnonzero(losses <= losses.min() + 1e-12)
        choice = max(tied, key=lambda i: (counts[i] > 0, -i))
        counts = counts + np.eye(len(counts))[choice]
        total = total + likelihood[choice]
        if losses[choice] < best_loss - 1e-12:
            best, best_loss = counts, losses[choice]
    return np.asarray(best / best.sum())


# Functions from each member's probability of each row's label, (M, n), to weights (M,).
CANDIDATES = {"uniform": uniform, "optimal": optimal, "greedy": greedy}


@FUSIONS.register
class Weighted(Vote):
    """Weighted voting. Attributes after fit: `weights_` (M,), `chosen_` (the candidate's name)."""

    description = "the weighted mean of the members' probabilities"
    order = 50
    learns_nothing = False

    def fit(self, inputs: FusionInputs) -> Self:
        """Choose a candidate by cross-validation, and fit its weights on all *fuse* rows."""
        probabilities, labels = softmax(inputs.fuse.logits), inputs.fuse.labels
        likelihood = np.ascontiguousarray(probabilities[:, np.arange(len(labels)), labels])
        splits = splits_of(inputs.fuse)
        losses = {name: self._validated(name, likelihood, splits) for name in CANDIDATES}
        self.chosen_ = min(CANDIDATES, key=lambda name: losses[name])
        self.weights_ = CANDIDATES[self.chosen_](likelihood)
        uniform_weights = uniform(likelihood)
        if _nll(self.weights_, likelihood) > _nll(uniform_weights, likelihood):
            self.chosen_, self.weights_ = "uniform", uniform_weights
        return self

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Return the weights and the name of the chosen candidate."""
        vote = super().describe(names, predictions)
        return Description(f"{vote.words}; {self.chosen_} weights", vote.weights)

    @staticmethod
    def _validated(name: str, likelihood: Floats, splits: Sequence[Split]) -> float:
        losses = []
        for fitted_rows, held_out in splits:
            weights = CANDIDATES[name](likelihood[:, fitted_rows])
            losses.append(_nll(weights, likelihood[:, held_out]) * len(held_out))
        return float(np.sum(losses))


def _nll(weights: Floats, likelihood: Floats) -> float:
    """Return the mean NLL of the weighted mean of the members' probabilities."""
    return float(-np.log(np.maximum(weights @ likelihood, TINY)).mean())
