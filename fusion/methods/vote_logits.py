"""Vote on logits: a geometric mean of the members' probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from fusion.interface import FUSIONS, NetworkOutputs
from fusion.methods.vote import Vote
from fusion.metrics.calibration import temperatures
from fusion.predictions import Floats, FusionInputs, Predictions, softmax, weighted_mean

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor


@FUSIONS.register
class VoteLogits(Vote):
    """The mean of the members' logits: a geometric mean of probabilities.

    If recipes differ, each member's logits are first divided by its own temperature, because label smoothing and mixup make
    logits smaller. Attributes after fit: `weights_` (M,), `temperatures_` (M,).
    """

    description = "the mean of the members' logits"
    order = 40
    stored_name = "LogitAverage"
    learns_nothing = False

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the members' temperatures on *fuse*."""
        super().fit(inputs)
        self.temperatures_ = np.ones(len(self.weights_)) if inputs.alike else temperatures(inputs.fuse)
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        return softmax(weighted_mean(predictions.logits / self.temperatures_[:, None, None], self.weights_))

    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the weights (M,) and the temperatures (M,)."""
        return {**super().arrays(used), "temperatures": self.temperatures_[list(used)]}

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return the log-softmax of the weighted mean of logits."""
        share = (arrays["weights"] / arrays["temperatures"])[:, None, None]
        return (outputs.logits * share).sum(0).log_softmax(1)
