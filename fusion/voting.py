"""vote: the mean of the members' probabilities, or of their logits. `Single` and `Student` are one network's answers."""

from __future__ import annotations

from typing import Self

import numpy as np

from fusion.calibration import temperatures
from fusion.outputs import Evidence, Floats, Table, softmax


class Vote:
    """Soft voting, as scikit-learn's VotingClassifier(voting="soft")."""

    def fit(self, evidence: Evidence) -> Self:
        self.weights_ = np.full(len(evidence.fuse.logits), 1 / len(evidence.fuse.logits))
        return self

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return pool(softmax(table.logits), self.weights_)


class VoteLogits:
    """The mean of the members' logits: a geometric mean of probabilities.

    Where recipes differ, each member's logits are divided by its own temperature first: label smoothing or mixup make a
    member timid, and its logits small. Attributes after fit: `weights_` (M,), `temperatures_` (M,).
    """

    def fit(self, evidence: Evidence) -> Self:
        fuse = evidence.fuse
        self.weights_ = np.full(len(fuse.logits), 1 / len(fuse.logits))
        same = np.ones(len(fuse.logits))
        self.temperatures_ = same if evidence.alike else temperatures(fuse)
        return self

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        return softmax(pool(table.logits / self.temperatures_[:, None, None], self.weights_))


class Student:
    """One network that learnt from the members' pooled answers, in the same form as a fusion."""

    def fit(self, evidence: Evidence) -> Self:
        return self

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        assert table.student is not None
        return softmax(table.student)


class Single:
    """One member alone, in the same form as a fusion."""

    def __init__(self, member: int) -> None:
        self.member = member

    def fit(self, evidence: Evidence) -> Self:
        self.weights_ = np.eye(len(evidence.fuse.logits))[self.member]
        return self

    def predict_proba(self, table: Table) -> Floats:
        return softmax(table.logits[self.member])


def pool(probabilities: Floats, weights: Floats) -> Floats:
    """(M, n, C) and (M,) -> (n, C)."""
    return np.asarray(np.tensordot(weights, probabilities, axes=1))
