"""weighted: a convex combination of probabilities, its weights found on *fuse*.

Three candidates: uniform; NLL-optimal weights (a convex problem, solved by EM for mixture weights); greedy selection
with replacement (Caruana et al. 2004). Inner cross-validation chooses; uniform stays where nothing beats it.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from fusion.calibration import TINY
from fusion.outputs import Evidence, Floats, Table, softmax
from fusion.shrunken import shuffled_splits
from fusion.voting import pool

ROUNDS = 40
NEGLIGIBLE = 1e-4


def uniform(likelihood: Floats) -> Floats:
    return np.full(len(likelihood), 1 / len(likelihood))


def optimal(likelihood: Floats) -> Floats:
    """The weights on the simplex with the lowest NLL. EM from uniform never gets worse, and the problem is convex."""
    weights = uniform(likelihood)
    for _ in range(5000):
        updated = weights * (likelihood @ (1 / np.maximum(weights @ likelihood, 1e-300))) / likelihood.shape[1]
        if np.abs(updated - weights).max() < 1e-9:
            break
        weights = updated
    weights = np.where(weights < NEGLIGIBLE, 0.0, weights)
    return np.asarray(weights / weights.sum())


def greedy(likelihood: Floats) -> Floats:
    """Add, with replacement, the member that lowers NLL most; the best prefix counts, ties go to members already in."""
    counts = np.zeros(len(likelihood))
    total = np.zeros_like(likelihood[0])
    best, best_loss = counts, np.inf
    for size in range(1, ROUNDS + 1):
        losses = -np.log(np.maximum((total + likelihood) / size, TINY)).mean(1)
        near = np.flatnonzero(losses <= losses.min() + 1e-12)
        pick = max(near, key=lambda i: (counts[i] > 0, -i))
        counts = counts + np.eye(len(counts))[pick]
        total = total + likelihood[pick]
        if losses[pick] < best_loss - 1e-12:
            best, best_loss = counts, losses[pick]
    return np.asarray(best / best.sum())


# From (M, n), each member's probability of the label of each row, to (M,) weights.
CANDIDATES = {"uniform": uniform, "optimal": optimal, "greedy": greedy}


class Weighted:
    """Attributes after fit: `weights_` (M,), `chosen_` (the candidate's name)."""

    def fit(self, evidence: Evidence) -> Self:
        probabilities, labels = softmax(evidence.fuse.logits), evidence.fuse.labels
        likelihood = np.ascontiguousarray(probabilities[:, np.arange(len(labels)), labels])
        losses = {name: self._validated(name, likelihood) for name in CANDIDATES}
        self.chosen_ = min(CANDIDATES, key=lambda name: losses[name])
        self.weights_ = CANDIDATES[self.chosen_](likelihood)
        same = uniform(likelihood)
        if _nll(self.weights_, likelihood) > _nll(same, likelihood):
            self.chosen_, self.weights_ = "uniform", same
        return self

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return pool(softmax(table.logits), self.weights_)

    @staticmethod
    def _validated(name: str, likelihood: Floats) -> float:
        rows, losses = likelihood.shape[1], []
        for kept, out in shuffled_splits(rows):
            weights = CANDIDATES[name](likelihood[:, kept])
            losses.append(_nll(weights, likelihood[:, out]) * len(out))
        return float(np.sum(losses))


def _nll(weights: Floats, likelihood: Floats) -> float:
    """Mean NLL of the pool: a row's probability of its label is the weighted mean of the members'."""
    return float(-np.log(np.maximum(weights @ likelihood, TINY)).mean())
