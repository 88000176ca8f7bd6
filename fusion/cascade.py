"""cascade: members are asked one after another until the pooled answer is confident enough.

The order is that of the members' NLL on *fuse*; the pool of the first k is calibrated by a temperature of its own. The
threshold is the lowest with which *fuse* is classified as well as by the vote of all, within a tolerance.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from fusion.calibration import apply_temperature, fit_temperature, logs, nll
from fusion.outputs import Evidence, Floats, Labels, Table, softmax

THRESHOLDS = (*np.arange(0.3, 0.96, 0.05), 0.97, 0.98, 0.99, 0.995, 0.999)
POINTS = 0.001  # of accuracy on *fuse* that may be lost
SHARE = 0.01  # of the vote's NLL that may be added


class Cascade:
    """Attributes after fit: `order_` (M,), `temperatures_` (M,) of the pools, `threshold_` (above 1: all are asked)."""

    def fit(self, evidence: Evidence) -> Self:
        logits, labels = evidence.fuse.logits, evidence.fuse.labels
        alone = [nll(softmax(x / fit_temperature(x, labels)), labels) for x in logits]
        self.order_ = np.argsort(alone, kind="stable")
        pools = _pools(logits[self.order_])
        self.temperatures_ = np.array([fit_temperature(logs(p), labels) for p in pools])
        self.threshold_ = self._lowest(self._stages(evidence.fuse), labels)
        return self

    def predict_proba(self, table: Table) -> Floats:
        """(n, C)."""
        stages = self._stages(table)
        return stages[_stops(stages, self.threshold_), np.arange(stages.shape[1])]

    def asked(self, table: Table) -> Labels:
        """(n,): how many members each row took."""
        return _stops(self._stages(table), self.threshold_) + 1

    def _stages(self, table: Table) -> Floats:
        """(M, n, C): the calibrated pool of the first k members."""
        pools = _pools(table.logits[self.order_])
        return np.stack([apply_temperature(p, t) for p, t in zip(pools, self.temperatures_, strict=True)])

    @staticmethod
    def _lowest(stages: Floats, labels: Labels) -> float:
        rows = np.arange(len(labels))
        whole = stages[-1]
        for threshold in THRESHOLDS:
            ours = stages[_stops(stages, threshold), rows]
            lost = float((whole.argmax(1) == labels).mean() - (ours.argmax(1) == labels).mean())
            if lost <= POINTS and nll(ours, labels) <= (1 + SHARE) * nll(whole, labels):
                return float(threshold)
        return 2.0


def _pools(logits: Floats) -> Floats:
    """(M, n, C) -> the mean of the first k members' probabilities, for each k."""
    return np.asarray(softmax(logits).cumsum(0) / np.arange(1, len(logits) + 1)[:, None, None])


def _stops(stages: Floats, threshold: float) -> Labels:
    """(n,): the first stage that is confident enough, or the last."""
    enough = stages.max(-1) >= threshold
    enough[-1] = True
    return np.asarray(enough.argmax(0))
