"""weighted: a convex combination of probabilities, its weights found on *fuse*.

Three candidates: uniform; NLL-optimal weights (a convex problem, solved by EM for mixture weights); greedy selection
with replacement (Caruana et al. 2004). Inner cross-validation chooses; uniform stays where nothing beats it.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from sklearn.model_selection import KFold

from fusion.calibration import nll
from fusion.outputs import Evidence, Floats, Labels, Table, softmax
from fusion.voting import pool

ROUNDS = 40
NEGLIGIBLE = 1e-4


def uniform(probabilities: Floats, labels: Labels) -> Floats:
    return np.full(len(probabilities), 1 / len(probabilities))


def optimal(probabilities: Floats, labels: Labels) -> Floats:
    """The weights on the simplex with the lowest NLL. EM from uniform never gets worse, and the problem is convex."""
    likelihood = probabilities[:, np.arange(len(labels)), labels]  # (M, n)
    weights = uniform(probabilities, labels)
    for _ in range(5000):
        share = weights[:, None] * likelihood
        updated = (share / np.maximum(share.sum(0), 1e-300)).mean(1)
        if np.abs(updated - weights).max() < 1e-9:
            break
        weights = updated
    weights = np.where(weights < NEGLIGIBLE, 0.0, weights)
    return np.asarray(weights / weights.sum())


def greedy(probabilities: Floats, labels: Labels) -> Floats:
    """Add, with replacement, the member that lowers NLL most; the best prefix counts, ties go to members already in."""
    counts = np.zeros(len(probabilities))
    total = np.zeros_like(probabilities[0])
    best, best_loss = counts, np.inf
    for size in range(1, ROUNDS + 1):
        losses = [nll((total + p) / size, labels) for p in probabilities]
        near = [i for i, loss in enumerate(losses) if loss <= min(losses) + 1e-12]
        pick = max(near, key=lambda i: (counts[i] > 0, -i))
        counts = counts + np.eye(len(counts))[pick]
        total = total + probabilities[pick]
        if losses[pick] < best_loss - 1e-12:
            best, best_loss = counts, losses[pick]
    return np.asarray(best / best.sum())


CANDIDATES = {"uniform": uniform, "optimal": optimal, "greedy": greedy}


class Weighted:
    """Attributes after fit: `weights_` (M,), `chosen_` (the candidate's name)."""

    def fit(self, evidence: Evidence) -> Self:
        probabilities, labels = softmax(evidence.fuse.logits), evidence.fuse.labels
        losses = {name: self._validated(name, probabilities, labels) for name in CANDIDATES}
        self.chosen_ = min(CANDIDATES, key=lambda name: losses[name])
        self.weights_ = CANDIDATES[self.chosen_](probabilities, labels)
        same = uniform(probabilities, labels)
        if nll(pool(probabilities, self.weights_), labels) > nll(pool(probabilities, same), labels):
            self.chosen_, self.weights_ = "uniform", same
        return self

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return pool(softmax(table.logits), self.weights_)

    @staticmethod
    def _validated(name: str, probabilities: Floats, labels: Labels) -> float:
        losses = []
        for kept, out in KFold(min(5, len(labels)), shuffle=True, random_state=0).split(labels):
            weights = CANDIDATES[name](probabilities[:, kept], labels[kept])
            losses.append(nll(pool(probabilities[:, out], weights), labels[out]) * len(out))
        return float(np.sum(losses))
