"""Run members one after another until the pooled answer is confident enough.

Members run in the order of their NLL on *fuse*. Each pool of the first k members is calibrated by its own temperature. The
threshold is the lowest at which the cascade is as good as the full vote on *fuse*, within a tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from fusion.interface import FUSIONS, Description, FusionMethod, NetworkOutputs
from fusion.metrics.calibration import TINY, apply_temperature, fit_temperature, log_probabilities, nll
from fusion.predictions import Floats, FusionInputs, Labels, Predictions, softmax

THRESHOLDS = (*np.arange(0.3, 0.96, 0.05), 0.97, 0.98, 0.99, 0.995, 0.999)
POINTS = 0.001  # largest loss of accuracy on *fuse*
SHARE = 0.01  # largest increase of NLL, relative to the vote's


if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor, nn


@FUSIONS.register
class Cascade(FusionMethod):
    """A cascade of members.

    Attributes after fit: `order_` (M,), `temperatures_` (M,) of the pools, `threshold_` (above 1: all members run).
    """

    description = "members run one after another until the pool is confident"
    order = 20
    stored_name = "Cascaded"

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
        return stages[_stops(stages.max(-1), self.threshold_), np.arange(stages.shape[1])]

    def count_networks(self, predictions: Predictions) -> Labels:
        """Return the number of members run for each row, (n,)."""
        return _stops(self._stages(predictions).max(-1), self.threshold_) + 1

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Return the members' order, the threshold, and the mean number of networks per row."""
        asked = float(self.count_networks(predictions).mean())
        until = f"until {self.threshold_:.1%} confident" if self.threshold_ <= 1 else "for every row"
        order = ", ".join(names[i] for i in self.order_)
        return Description(f"runs {order} {until}: {asked:.2f} networks on average")

    def used(self, count: int) -> list[int]:
        """Return all members, in the order in which they run."""
        return [int(i) for i in self.order_]

    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the temperatures (M,) of the pools, and the threshold, a scalar."""
        return {"temperatures": self.temperatures_, "threshold": self.threshold_}

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return the answer of the first confident pool, from the outputs of all members."""
        count, probabilities = len(outputs.logits), outputs.logits.softmax(2)
        answer = _stage(arrays, probabilities.mean(0), count - 1)
        for k in range(count - 2, -1, -1):
            earlier = _stage(arrays, probabilities[: k + 1].mean(0), k)
            answer = earlier.where(_is_confident(arrays, earlier)[:, None], answer)
        return answer

    @staticmethod
    def ask_in_turn(arrays: Mapping[str, Tensor], networks: Sequence[nn.Module], x: Tensor) -> Tensor | None:
        """Return the result of `combine`, running each member only for the rows that still need it."""
        open_rows, total, answer = x.new_ones(len(x)).nonzero()[:, 0], x.new_zeros(()), x.new_zeros(())
        for k, network in enumerate(networks):
            total = total + network(x[open_rows]).softmax(1)
            current = _stage(arrays, total / (k + 1), k)
            answer = answer.index_copy(0, open_rows, current) if k else current
            is_open = ~_is_confident(arrays, current)
            open_rows, total = open_rows[is_open], total[is_open]
            if not len(open_rows):
                break
        return answer

    def _stages(self, predictions: Predictions) -> Floats:
        """Return the calibrated pool of the first k members, for each k: (M, n, C)."""
        pools = _pools(predictions.logits[self.order_])
        return np.stack([apply_temperature(p, t) for p, t in zip(pools, self.temperatures_, strict=True)])

    @staticmethod
    def _lowest(stages: Floats, labels: Labels) -> float:
        """Return the lowest threshold at which the cascade is as good as the vote, or 2 if there is none."""
        rows, confidence = np.arange(len(labels)), stages.max(-1)
        is_right = stages.argmax(-1) == labels
        losses = -log_probabilities(stages[:, rows, labels])
        for threshold in THRESHOLDS:
            stops = _stops(confidence, threshold)
            lost = float(is_right[-1].mean() - is_right[stops, rows].mean())
            if lost <= POINTS and losses[stops, rows].mean() <= (1 + SHARE) * losses[-1].mean():
                return float(threshold)
        return 2.0


def _stage(arrays: Mapping[str, Tensor], pooled: Tensor, k: int) -> Tensor:
    """Calibrate the pool (N, C) of the first k + 1 members; return log-probabilities."""
    return (pooled.clamp(min=TINY).log() / arrays["temperatures"][k]).log_softmax(1)


def _is_confident(arrays: Mapping[str, Tensor], answer: Tensor) -> Tensor:
    """Return a mask (N,) of the confident rows of log-probabilities (N, C)."""
    return answer.amax(1) >= arrays["threshold"].log()


def _pools(logits: Floats) -> Floats:
    """Return the mean of the first k members' probabilities, for each k: (M, n, C)."""
    return np.asarray(softmax(logits).cumsum(0) / np.arange(1, len(logits) + 1)[:, None, None])


def _stops(confidence: Floats, threshold: float) -> Labels:
    """Return the first confident stage of each row, or the last stage, (n,), from the confidence of each stage, (M, n)."""
    enough = confidence >= threshold
    enough[-1] = True
    return np.asarray(enough.argmax(0))
