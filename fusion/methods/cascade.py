"""Ask members one after another until the pooled answer is confident enough.

The order is that of the members' NLL on *fuse*. The pool of the first k members is calibrated by a temperature of its own. The
threshold is the lowest with which *fuse* is classified as well as by the vote of all, within a tolerance.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from fusion.metrics.calibration import apply_temperature, fit_temperature, log_probabilities, nll
from fusion.predictions import Floats, FusionInputs, Labels, Predictions, softmax

THRESHOLDS = (*np.arange(0.3, 0.96, 0.05), 0.97, 0.98, 0.99, 0.995, 0.999)
POINTS = 0.001  # of accuracy on *fuse* that may be lost
SHARE = 0.01  # of the vote's NLL that may be added


class Cascade:
    """A cascade of members.

    Attributes after fit: `order_` (M,), `temperatures_` (M,) of the pools, `threshold_` (above 1: all members are asked).
    """

    def fit(self, inputs: FusionInputs) -> Self:
        """Order the members, calibrate the pools and find the threshold on *fuse*."""
        logits, labels = inputs.fuse.logits, inputs.fuse.labels
        alone = [nll(softmax(x / fit_temperature(x, labels)), labels) for x in logits]
        self.order_ = np.argsort(alone, kind="stable")
        pools = _pools(logits[self.order_])
        self.temperatures_ = np.array([fit_temperature(log_probabilities(p), labels) for p in pools])
        self.threshold_ = self._lowest(self._stages(inputs.fuse), labels)
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        stages = self._stages(predictions)
        return stages[_stops(stages, self.threshold_), np.arange(stages.shape[1])]

    def count_networks(self, predictions: Predictions) -> Labels:
        """Return how many members each row took, (n,)."""
        return _stops(self._stages(predictions), self.threshold_) + 1

    def _stages(self, predictions: Predictions) -> Floats:
        """Return the calibrated pool of the first k members, for each k: (M, n, C)."""
        pools = _pools(predictions.logits[self.order_])
        return np.stack([apply_temperature(p, t) for p, t in zip(pools, self.temperatures_, strict=True)])

    @staticmethod
    def _lowest(stages: Floats, labels: Labels) -> float:
        rows = np.arange(len(labels))
        vote = stages[-1]
        for threshold in THRESHOLDS:
            probabilities = stages[_stops(stages, threshold), rows]
            lost = float((vote.argmax(1) == labels).mean() - (probabilities.argmax(1) == labels).mean())
            if lost <= POINTS and nll(probabilities, labels) <= (1 + SHARE) * nll(vote, labels):
                return float(threshold)
        return 2.0


def _pools(logits: Floats) -> Floats:
    """Return the mean of the first k members' probabilities, for each k: (M, n, C)."""
    return np.asarray(softmax(logits).cumsum(0) / np.arange(1, len(logits) + 1)[:, None, None])


def _stops(stages: Floats, threshold: float) -> Labels:
    """Return the first stage that is confident enough, or the last, for each row: (n,)."""
    enough = stages.max(-1) >= threshold
    enough[-1] = True
    return np.asarray(enough.argmax(0))
