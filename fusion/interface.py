"""What a fusion is: fit and predict on arrays, the same in torch for the exported model, its costs and its words.

A fusion is one module of `fusion/methods/` with one class, registered by `@FUSIONS.register`, and derived from `FusionMethod`.
It has the name of its module. No other module knows one fusion from another.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from workers.config.registry import Registry

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from fusion.predictions import Floats, FusionInputs, Labels, Predictions

DEFAULT = ("vote", "weighted", "concat", "stack")
Networks = Literal["members", "fold trainings", "student"]
Trainings = Literal["full", "folds", "student"]


@dataclass(frozen=True)
class Description:
    """What a fusion chose, for the report.

    Attributes:
        words: How it was fitted, in words.
        weights: The weight of each member, by its name, where it has weights.
        asked: Mean number of networks that a row takes, where that differs from row to row.
    """

    words: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    asked: float | None = None


@dataclass
class NetworkOutputs:
    """What the networks of a fused model say of a batch of N images.

    Attributes:
        logits: (M, N, C), in the order in which the fusion asks the networks.
        features: (N, sum of D_m), side by side in the same order; None where the fusion does not use them.
    """

    logits: Tensor
    features: Tensor | None = None


class FusionMethod(ABC):
    """A way to combine members, in the manner of a scikit-learn classifier.

    Class attributes:
        description: One line for people.
        order: Place in tables, and among candidates of equal cost in the recommendation.
        stored_name: Name by which exported models call what `combine` does. It never changes.
        asks: Which networks it asks at inference.
        pays_for: Which trainings had to be paid for it.
        learns_from_folds: Whether it learns from the outputs of fold trainings.
        needs_linear_heads: Whether every member has to end in a Linear layer.
        uses_features: Whether `combine` uses the networks' features.
        learns_nothing: Whether nothing but the last stage is fitted: it is taken where the rows are too few to choose by.
    """

    description: ClassVar[str]
    order: ClassVar[int]
    stored_name: ClassVar[str]
    asks: ClassVar[Networks] = "members"
    pays_for: ClassVar[tuple[Trainings, ...]] = ("full",)
    learns_from_folds: ClassVar[bool] = False
    needs_linear_heads: ClassVar[bool] = False
    uses_features: ClassVar[bool] = False
    learns_nothing: ClassVar[bool] = False

    @classmethod
    def why_impossible(cls, inputs: FusionInputs) -> str | None:
        """Return why it cannot be made of these predictions, as the end of a sentence; None where it can."""
        return None

    @classmethod
    def members_of(cls, inputs: FusionInputs) -> tuple[int, ...] | None:
        """Return the positions of the members that it is fitted on; None for all."""
        return None

    @abstractmethod
    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the fusion, and return it."""

    def fit_nested(self, inputs: FusionInputs, folds: Sequence[Labels]) -> list[Self]:
        """Return one like this, which is not fitted yet, fitted on all *fuse* rows, and then one without each fold of them.

        Nested cross-validation asks for that. A fusion that can fit all of them at once, and sooner, overrides it.

        Args:
            inputs: What it may learn from.
            folds: The rows of each fold. Each *fuse* row is in one of them.
        """
        import numpy as np  # commands that only list fusions do without

        rows = np.arange(len(inputs.fuse.labels))
        without = [np.setdiff1d(rows, fold, assume_unique=True) for fold in folds]
        return [copy.copy(self).fit(inputs), *(copy.copy(self).fit(inputs.with_fuse(part)) for part in without)]

    @abstractmethod
    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""

    def used(self, count: int) -> list[int]:
        """Return the positions of the members that it asks, of the `count` that it was fitted on, in its order of asking."""
        return list(range(count))

    def shares(self, predictions: Predictions) -> list[float]:
        """Return the share of rows for which it asks each member that it uses, in its order of asking."""
        return [1.0] * len(self.used(len(predictions.logits)))

    @abstractmethod
    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the fitted arrays that `combine` needs, by name, for the members at the positions `used`."""

    @staticmethod
    @abstractmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return log-probabilities (N, C), as `predict_proba` does, from the networks' outputs.

        Args:
            arrays: What `arrays` returned, as float32 tensors.
            outputs: The networks' outputs.
        """

    @staticmethod
    def ask_in_turn(arrays: Mapping[str, Tensor], networks: Sequence[nn.Module], x: Tensor) -> Tensor | None:
        """Return what `combine` returns while asking fewer networks, or None where all have to be asked.

        Args:
            arrays: What `arrays` returned, as float32 tensors.
            networks: The networks: (N, 3, H, W) float32 in [0, 1] -> (N, C) logits.
            x: (N, 3, H, W) float32 in [0, 1].
        """
        return None

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Return what it chose.

        Args:
            names: Names of the members that it was fitted on.
            predictions: Predictions to measure on what it asks.
        """
        return Description()

    def doubts(self, name: str) -> list[str]:
        """Return sentences on why its gain may not carry over; nobody is told where rows that it never saw show the gain.

        Args:
            name: Its name.
        """
        return []

    def warnings(self, name: str, inputs: FusionInputs) -> list[str]:
        """Return sentences on what may be wrong with it.

        Args:
            name: Its name.
            inputs: What it was fitted on.
        """
        return []


FUSIONS: Registry[FusionMethod] = Registry("fusion", "fusion.methods", "conclave.fusions")


def asks_for_student(names: Sequence[str]) -> bool:
    """Return whether one of these fusions asks a student."""
    return any(FUSIONS[name].asks == "student" for name in names)


def by_order(names: Iterable[str]) -> list[str]:
    """Return fusions in the order of tables."""
    return sorted(names, key=lambda name: (FUSIONS[name].order, name))
