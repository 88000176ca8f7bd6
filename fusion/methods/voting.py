"""Vote: the mean of the members' probabilities, or of their logits. `Single` and `Student` are one network's answers."""

from __future__ import annotations

from typing import Self

import numpy as np

from fusion.metrics.calibration import temperatures
from fusion.predictions import Floats, FusionInputs, Predictions, softmax


class Vote:
    """Soft voting, as scikit-learn's VotingClassifier(voting="soft"). Attributes after fit: `weights_` (M,)."""

    def fit(self, inputs: FusionInputs) -> Self:
        """Give each member the same weight."""
        self.weights_ = np.full(len(inputs.fuse.logits), 1 / len(inputs.fuse.logits))
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        return weighted_mean(softmax(predictions.logits), self.weights_)


class VoteLogits:
    """The mean of the members' logits: a geometric mean of probabilities.

    Where recipes differ, each member's logits are divided by its own temperature first: label smoothing or mixup make a member
    timid, and its logits small. Attributes after fit: `weights_` (M,), `temperatures_` (M,).
    """

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the members' temperatures on *fuse*."""
        fuse = inputs.fuse
        self.weights_ = np.full(len(fuse.logits), 1 / len(fuse.logits))
        ones = np.ones(len(fuse.logits))
        self.temperatures_ = ones if inputs.alike else temperatures(fuse)
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        return softmax(weighted_mean(predictions.logits / self.temperatures_[:, None, None], self.weights_))


class Student:
    """One network that learnt from the members' pooled answers, in the same form as a fusion."""

    def fit(self, inputs: FusionInputs) -> Self:
        """Do nothing: the student was trained before."""
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        assert predictions.student is not None
        return softmax(predictions.student)


class Single:
    """One member alone, in the same form as a fusion.

    Args:
        member: Position of the member.
    """

    def __init__(self, member: int) -> None:
        self.member = member

    def fit(self, inputs: FusionInputs) -> Self:
        """Give all weight to the member."""
        self.weights_ = np.eye(len(inputs.fuse.logits))[self.member]
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        return softmax(predictions.logits[self.member])


def weighted_mean(probabilities: Floats, weights: Floats) -> Floats:
    """Return the weighted mean over members: (M, n, C) and (M,) -> (n, C)."""
    return np.asarray(np.tensordot(weights, probabilities, axes=1))
