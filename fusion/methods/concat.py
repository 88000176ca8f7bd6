"""Concatenate the members' features under one linear head, fitted on *fuse*.

The head starts as the block-concatenation of the members' own heads (W_m / M), which is exactly the mean of their logits, and
is penalised for its distance from that start. An infinite penalty, one of the candidates, is the logit vote. If recipes differ,
the start is the better of two logit votes by NLL: on raw logits, or with each member at its own temperature.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from fusion.fitting.cross_validation import PENALTIES, describe_penalty, fit_heads, splits_of
from fusion.fitting.heads import MatrixProblem, Split, Start
from fusion.interface import FUSIONS, Description, FusionMethod, NetworkOutputs
from fusion.metrics.calibration import calibrated_losses, temperatures
from fusion.predictions import Floats, FusionInputs, Inputs, Labels, Predictions, softmax
from workers.errors import ConclaveError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AveragingStart(Start):
    """The head whose logits are the mean of the members' logits, each divided by its entry of `by` (M,)."""

    by: Floats

    def average(self, logits: Floats) -> Floats:
        """Return its logits (n, C) from those of the members, (M, n, C)."""
        return np.asarray((logits / self.by[:, None, None]).mean(0))


@FUSIONS.register
class Concat(FusionMethod):
    """A linear head on concatenated features.

    Attributes after fit: `coef_` (C, sum of D_m) and `intercept_` (C,) on raw features, `penalty_`, `start_`, and
    `temperature_`, that of the start.

    The start's logits are those of the members. On out-of-fold rows they are of the fold training that left the row out, and the
    head that is exported adds what was learned to the full trainings' heads.
    """

    description = "one linear head on all members' features"
    order = 80
    stored_name = "Linear"
    needs_linear_heads = True
    uses_features = True

    coef_: Floats
    intercept_: Floats
    penalty_: float
    start_: AveragingStart
    temperature_: float

    @classmethod
    def why_impossible(cls, inputs: FusionInputs) -> str | None:
        """Return a reason if the features of the rows to learn from differ from those of the exported networks."""
        if inputs.fuse.features:
            return None
        return "the features of fold trainings differ from those of the full ones; set `freeze: backbone` for every member"

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the head on *fuse*. Raises ConclaveError if a member has no linear head."""
        folds = [held_out for _, held_out in splits_of(inputs.fuse)]
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
            start = averaging_head(light.with_fuse(split[0]))
            start = replace(start, base=start.average(fuse.logits))
            return MatrixProblem(x, y, start, split, len(inputs.heads))

        fitted = []
        for best in fit_heads(problem_of, len(y), folds, PENALTIES, is_nested):
            method = copy.copy(self)
            assert isinstance(best.start, AveragingStart)
            method.penalty_, method.start_, method.temperature_ = best.penalty, best.start, best.temperature
            method.coef_, method.intercept_ = best.head
            fitted.append(method)
        return fitted

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C): the average of the members' logits, and what the head adds to it."""
        x: Inputs = np.concatenate(predictions.features, axis=1)
        coef = (self.coef_ - self.start_.coef / self.temperature_).astype(x.dtype)
        intercept = self.intercept_ - self.start_.intercept / self.temperature_
        return softmax(self.start_.average(predictions.logits) / self.temperature_ + x @ coef.T + intercept)

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


def averaging_head(inputs: FusionInputs) -> AveragingStart:
    """Return the head that averages the members' logits, raw or at their temperatures."""
    fuse, count = inputs.fuse, len(inputs.heads)
    votes = [np.ones(count)] if inputs.alike else [np.ones(count), temperatures(fuse)]
    best = min(votes, key=lambda by: calibrated_losses((fuse.logits / by[:, None, None]).mean(0), fuse.labels).sum())
    heads = [(w / (t * count), b / (t * count)) for (w, b), t in zip(inputs.heads, best, strict=True)]
    return AveragingStart(np.concatenate([w for w, _ in heads], axis=1), np.sum([b for _, b in heads], axis=0), by=best)
