"""Concatenate the members' features under one linear head, fitted on *fuse*.

The head starts as the block-concatenation of the members' own heads (W_m / M), which is exactly the mean of their logits, and
is penalised for the distance to that start. An infinite penalty, one of the candidates, is the logit vote. Where recipes differ
there is a second logit vote, of members at their own temperatures; the one with the lower NLL is the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from fusion.fitting.shrinkage import (
    Head,
    ShrinkageProblem,
    best_penalty,
    cross_validated,
    penalty_in_words,
    shuffled_splits,
    solve_head,
)
from fusion.interface import FUSIONS, Description, FusionMethod, NetworkOutputs
from fusion.metrics.calibration import calibrated_losses, temperatures
from fusion.predictions import Floats, FusionInputs, Inputs, Labels, Predictions, softmax
from workers.errors import ConclaveError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor


@FUSIONS.register
class Concat(FusionMethod):
    """A linear head on concatenated features.

    Attributes after fit: `coef_` (C, sum of D_m) and `intercept_` (C,) on raw features, `penalty_`, `start_`.

    Args:
        penalty: The penalty; chosen by cross-validation where left out.
    """

    description = "one linear head on all members' features"
    order = 80
    stored_name = "Linear"
    needs_linear_heads = True
    uses_features = True

    def __init__(self, penalty: float | None = None) -> None:
        self.penalty = penalty

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the head on *fuse*. Raises ConclaveError where a member has no linear head."""
        if not inputs.heads:
            raise ConclaveError("concat needs members that end in a Linear head.")
        x: Inputs = np.concatenate(inputs.fuse.features, axis=1)
        y = inputs.fuse.labels
        self.start_ = averaging_head(inputs)
        if self.penalty is None:
            self.penalty_ = best_penalty(cross_validated(x, y, self._problem, shuffled_splits(len(y))))
        else:
            self.penalty_ = self.penalty
        self.coef_, self.intercept_ = solve_head(self._problem(x, y), self.penalty_)
        return self

    def _problem(self, x: Inputs, y: Labels) -> ShrinkageProblem:
        return ShrinkageProblem(x, y, self.start_)

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        x: Inputs = np.concatenate(predictions.features, axis=1)
        return softmax(x @ self.coef_.T.astype(x.dtype) + self.intercept_)

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Return the penalty."""
        return Description(penalty_in_words(self.penalty_))

    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the head: (C, sum of D_m) and (C,)."""
        return {"coef": self.coef_, "intercept": self.intercept_}

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return the log-softmax of the head on the concatenated features."""
        assert outputs.features is not None
        return (outputs.features @ arrays["coef"].T + arrays["intercept"]).log_softmax(1)


def averaging_head(inputs: FusionInputs) -> Head:
    """Return the head (C, sum of D_m), (C,) that gives the mean of the members' logits, each at its temperature or as it is."""
    fuse, count = inputs.fuse, len(inputs.heads)
    votes = [np.ones(count)] if inputs.alike else [np.ones(count), temperatures(fuse)]
    best = min(votes, key=lambda by: calibrated_losses((fuse.logits / by[:, None, None]).mean(0), fuse.labels).sum())
    heads = [(w / (t * count), b / (t * count)) for (w, b), t in zip(inputs.heads, best, strict=True)]
    return np.concatenate([w for w, _ in heads], axis=1), np.sum([b for _, b in heads], axis=0)
