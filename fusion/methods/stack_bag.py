"""Bagged stack: a stack whose members are bags of their fold trainings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusion.interface import FUSIONS, NetworkOutputs
from fusion.methods.stack import Stack
from fusion.metrics.calibration import TINY, log_probabilities
from fusion.predictions import FusionInputs, Predictions, softmax
from workers.errors import ConclaveError

if TYPE_CHECKING:
    from torch import Tensor


@FUSIONS.register
class StackBag(Stack):
    """A stack on bags: the mean probabilities of each member's K fold trainings.

    It runs K networks per member at inference, and needs no full training. The fold trainings need outputs on *fuse*.
    """

    description = "a stack whose members are bags of their fold trainings"
    order = 90
    stored_name = "Bags"
    asks = "fold trainings"
    pays_for = ("folds",)

    @classmethod
    def why_impossible(cls, inputs: FusionInputs) -> str | None:
        """Return a reason if no member has finished fold trainings."""
        if inputs.with_oof or inputs.fuse.parts is not None:
            return None
        return "no member has finished fold trainings; set data.folds, and run the sweep with stack_bag in its `fusion`"

    def as_seen(self, predictions: Predictions) -> Predictions:
        """Replace each member by the bag of its fold trainings. Raises ConclaveError if these have no outputs."""
        if predictions.folds is None:
            raise ConclaveError("stack_bag needs the outputs of every member's fold trainings on fuse and test: set data.folds.")
        return Predictions(
            log_probabilities(softmax(predictions.folds).mean(1)),
            (),
            predictions.labels,
            groups=predictions.groups,
            parts=predictions.parts,
        )

    @staticmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Combine the bags as a stack does; the K networks of a bag are consecutive."""
        _, rows, classes = outputs.logits.shape
        bags = outputs.logits.reshape(len(arrays["temperatures"]), -1, rows, classes).softmax(3).mean(1)
        return Stack.combine(arrays, NetworkOutputs(bags.clamp(min=TINY).log()))
