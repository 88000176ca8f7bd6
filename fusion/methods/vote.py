"""Vote: the mean of the members' probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from fusion.interface import FUSIONS, Description, FusionMethod, NetworkOutputs
from fusion.metrics.calibration import TINY
from fusion.predictions import Floats, FusionInputs, Predictions, softmax, weighted_mean

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor


@FUSIONS.register
class Vote(FusionMethod):
    """Soft voting, as scikit-learn's VotingClassifier(voting="soft"). Attributes after fit: `weights_` (M,)."""

    description = "the mean of the members' probabilities"
    order = 30
    stored_name = "Average"
    learns_nothing = True

    def fit(self, inputs: FusionInputs) -> Self:
        """Give each member the same weight."""
        self.weights_: Floats = np.full(len(inputs.fuse.logits), 1 / len(inputs.fuse.logits))
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        return weighted_mean(softmax(predictions.logits), self.weights_)

    def used(self, count: int) -> list[int]:
        """Return the members with a weight above zero."""
        return [i for i in range(count) if self.weights_[i] > 0]

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Return the weights."""
        weights = dict(zip(names, map(float, self.weights_), strict=True))
        return Description(", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()), weights)

    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the weights (M,)."""
        return {"weights": self.weights_[list(used)]}

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return the logarithm of the weighted mean of probabilities."""
        return (outputs.logits.softmax(2) * arrays["weights"][:, None, None]).sum(0).clamp(min=TINY).log()
