"""Bagged stack: a stack over the fold trainings, each member a bag of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from fusion.interface import FUSIONS, NetworkOutputs
from fusion.methods.stack import Stack
from fusion.metrics.calibration import TINY, log_probabilities
from fusion.predictions import Floats, FusionInputs, Predictions, softmax
from workers.errors import ConclaveError

if TYPE_CHECKING:
    from torch import Tensor


@FUSIONS.register
class StackBag(Stack):
    """Stacking over the fold trainings: each member speaks as the mean of its K fold trainings' probabilities.

    It has K networks per member at inference, and needs no full training. It is for teams whose fold trainings have outputs on
    *fuse*.
    """

    description = "a stack whose members are bags of their fold trainings"
    order = 90
    stored_name = "Bags"
    asks = "fold trainings"
    pays_for = ("folds",)

    @classmethod
    def why_impossible(cls, inputs: FusionInputs) -> str | None:
        """Return a reason where a fold training has no predictions on *fuse*."""
        if inputs.with_oof:
            return None
        return "no member has finished fold trainings; set data.folds, and run the sweep with stack_bag in its `fusion`"

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the head, and the bags' temperatures on *fuse*."""
        return super().fit(replace(inputs, fuse=bagged(inputs.fuse)))

    def as_seen(self, predictions: Predictions) -> Predictions:
        """Return the predictions of the bags of fold trainings."""
        return bagged(predictions)

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        return super().predict_proba(bagged(predictions))

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return what a stack returns for the bags; each has K networks in a row."""
        _, rows, classes = outputs.logits.shape
        bags = outputs.logits.reshape(len(arrays["temperatures"]), -1, rows, classes).softmax(3).mean(1)
        return Stack.combine(arrays, NetworkOutputs(bags.clamp(min=TINY).log()))


def bagged(predictions: Predictions) -> Predictions:
    """Return predictions whose members are the bags of their fold trainings. Raises ConclaveError where those gave no outputs."""
    if predictions.folds is None:
        raise ConclaveError("stack_bag needs the outputs of every member's fold trainings on fuse and test: set data.folds.")
    return Predictions(log_probabilities(softmax(predictions.folds).mean(1)), (), predictions.labels)
