"""Concatenate the members' features under one linear head, fitted on *fuse*.

The head starts as the block-concatenation of the members' own heads (W_m / M), which is exactly the mean of their logits, and
is penalised for its distance from that start. An infinite penalty, one of the candidates, is the logit vote. If recipes differ,
the start is the better of two logit votes by NLL: on raw logits, or with each member at its own temperature.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from fusion.fitting.cross_validation import PENALTIES, describe_penalty, fit_heads, shuffled_splits
from fusion.fitting.heads import Head, MatrixProblem, Split
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

    Attributes after fit: `coef_` (C, sum of D_m) and `intercept_` (C,) on raw features, `penalty_`.
    """

    description = "one linear head on all members' features"
    order = 80
    stored_name = "Linear"
    needs_linear_heads = True
    uses_features = True

    coef_: Floats
    intercept_: Floats
    penalty_: float

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the head on *fuse*. Raises ConclaveError if a member has no linear head."""
        folds = [held_out for _, held_out in shuffled_splits(len(inputs.fuse.labels), inputs.fuse.groups)]
        return self._fitted(inputs, folds, is_nested=False)[0]

    def fit_nested(self, inputs: FusionInputs, folds: Sequence[Labels]) -> list[Self]:
        """Return copies fitted on all rows, and then on all rows except each fold. They share most of the work."""
        return self._fitted(inputs, folds, is_nested=True)

    def _fitted(self, inputs: FusionInputs, folds: Sequence[Labels], is_nested: bool) -> list[Self]:
        if not inputs.heads:
            raise ConclaveError("concat needs members that end in a Linear head.")
        fuse = inputs.fuse
        x, y = np.concatenate(fuse.features, axis=1), fuse.labels
        light = replace(inputs, fuse=replace(fuse, features=()))  # the start needs no features

        def problem_of(split: Split) -> MatrixProblem:
            return MatrixProblem(x, y, averaging_head(light.with_fuse(split[0])), split, len(inputs.heads))

        fitted = []
        for best in fit_heads(problem_of, len(y), folds, PENALTIES, is_nested):
            method = copy.copy(self)
            method.penalty_, (method.coef_, method.intercept_) = best.penalty, best.head
            fitted.append(method)
        return fitted

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        x: Inputs = np.concatenate(predictions.features, axis=1)
        return softmax(x @ self.coef_.T.astype(x.dtype) + self.intercept_)

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Return the penalty."""
        return Description(describe_penalty(self.penalty_))

    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the head: (C, sum of D_m) and (C,)."""
        return {"coef": self.coef_, "intercept": self.intercept_}

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return the log-softmax of the head on the concatenated features."""
        assert outputs.features is not None
        return (outputs.features @ arrays["coef"].T + arrays["intercept"]).log_softmax(1)


def averaging_head(inputs: FusionInputs) -> Head:
    """Return the head (C, sum of D_m), (C,) that averages the members' logits, raw or at their temperatures."""
    fuse, count = inputs.fuse, len(inputs.heads)
    votes = [np.ones(count)] if inputs.alike else [np.ones(count), temperatures(fuse)]
    best = min(votes, key=lambda by: calibrated_losses((fuse.logits / by[:, None, None]).mean(0), fuse.labels).sum())
    heads = [(w / (t * count), b / (t * count)) for (w, b), t in zip(inputs.heads, best, strict=True)]
    return np.concatenate([w for w, _ in heads], axis=1), np.sum([b for _, b in heads], axis=0)
