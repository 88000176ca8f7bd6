"""Find every fusion by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

from fusion.methods.cascade import Cascade
from fusion.methods.concat import Concat
from fusion.methods.stacking import PlainStack, Stack, StackBag
from fusion.methods.voting import Student, Vote, VoteLogits
from fusion.methods.weighting import Weighted
from fusion.predictions import Floats, FusionInputs, Predictions


class FusionMethod(Protocol):
    """A way to combine members, in the manner of a scikit-learn classifier."""

    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the fusion, and return it."""
        ...

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        ...


METHODS: dict[str, Callable[[], FusionMethod]] = {
    "student": Student,
    "cascade": Cascade,
    "vote": Vote,
    "vote_logits": VoteLogits,
    "weighted": Weighted,
    "stack": Stack,
    "stack_plain": PlainStack,
    "concat": Concat,
    "stack_bag": StackBag,
}
