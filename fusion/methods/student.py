"""Student: one network distilled from the members' vote, as a fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from fusion.interface import FUSIONS, FusionMethod
from fusion.methods.vote import Vote
from fusion.predictions import Floats, FusionInputs, Predictions, softmax

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@FUSIONS.register
class Student(FusionMethod):
    """One network in place of all members, trained beforehand."""

    description = "one network distilled from the vote"
    order = 10
    stored_name = "Average"
    asks = "student"
    pays_for = ("full", "student")
    combine = staticmethod(Vote.combine)

    @classmethod
    def why_impossible(cls, inputs: FusionInputs) -> str | None:
        """Return a reason if no student was trained."""
        if inputs.fuse.student is None:
            return "no student was trained for exactly these members"
        return None

    def fit(self, inputs: FusionInputs) -> Self:
        """Do nothing: the student is already trained."""
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        assert predictions.student is not None
        return softmax(predictions.student)

    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the weight of the single network."""
        return {"weights": [1.0]}
