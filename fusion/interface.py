"""Define the interface of a fusion: fit and predict on arrays, combine in torch, costs, and descriptions.

A fusion is a module of `fusion/methods/` with one class, derived from `FusionMethod` and registered by `@FUSIONS.register`
under the module's name. No other module depends on a particular fusion.
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
    """Description of a fitted fusion, for the report.

    Attributes:
        words: How it was fitted, in words.
        weights: Weight of each member by name; empty for a fusion without weights.
    """

    words: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass
class NetworkOutputs:
    """Outputs of a fused model's networks for a batch of N images.

    Attributes:
        logits: (M, N, C), in the order in which the fusion runs the networks.
        features: (N, sum of D_m), concatenated in the same order; None if the fusion does not use them.
    """

    logits: Tensor
    features: Tensor | None = None


class FusionMethod(ABC):
    """A method to combine members, modelled on scikit-learn's classifiers.

    Class attributes:
        description: One-line description for users.
        order: Position in tables, and among candidates of equal cost in the recommendation.
        stored_name: Name of `combine` in exported models. It never changes.
        asks: Networks that it runs at inference.
        pays_for: Trainings that its cost includes.
        learns_from_folds: Whether it learns from the outputs of fold trainings.
        needs_linear_heads: Whether every member has to end in a Linear layer.
        uses_features: Whether `combine` uses the networks' features.
        learns_nothing: Whether only the temperature is fitted. Such a fusion is chosen if there are too few rows to choose by.
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
        """Return the reason why it cannot use these predictions, as the end of a sentence; None if it can."""
        return None

    @classmethod
    def members_of(cls, inputs: FusionInputs) -> tuple[int, ...] | None:
        """Return the positions of the members that it is fitted on; None for all."""
        return None

    @abstractmethod
    def fit(self, inputs: FusionInputs) -> Self:
        """Fit the fusion, and return it."""

    def fit_nested(self, inputs: FusionInputs, folds: Sequence[Labels]) -> list[Self]:
        """Return copies fitted on all *fuse* rows, and then on all rows except each fold in turn.

        This is for nested cross-validation. Override it if all fits together can be done faster.

        Args:
            inputs: Data to learn from.
            folds: Rows of each fold. Each *fuse* row is in exactly one fold.
        """
        import numpy as np  # commands that only list fusions don't need it

        rows = np.arange(len(inputs.fuse.labels))
        without = [np.setdiff1d(rows, fold, assume_unique=True) for fold in folds]
        return [copy.copy(self).fit(inputs), *(copy.copy(self).fit(inputs.with_fuse(part)) for part in without)]

    @abstractmethod
    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""

    def used(self, count: int) -> list[int]:
        """Return the positions of the members that it runs, out of the `count` that it was fitted on, in running order."""
        return list(range(count))

    @abstractmethod
    def arrays(self, used: Sequence[int]) -> dict[str, ArrayLike]:
        """Return the fitted arrays that `combine` needs, by name, for the members at the positions `used`."""

    @staticmethod
    @abstractmethod
    def combine(arrays: Mapping[str, Tensor], outputs: NetworkOutputs) -> Tensor:
        """Return log-probabilities (N, C), as `predict_proba` does, from the networks' outputs.

        Args:
            arrays: The arrays of the method `arrays`, as float32 tensors.
            outputs: The networks' outputs.
        """

    @staticmethod
    def ask_in_turn(arrays: Mapping[str, Tensor], networks: Sequence[nn.Module], x: Tensor) -> Tensor | None:
        """Return the result of `combine` while running fewer networks, or None if all of them are needed.

        Args:
            arrays: The arrays of the method `arrays`, as float32 tensors.
            networks: The networks: (N, 3, H, W) float32 in [0, 1] -> (N, C) logits.
            x: (N, 3, H, W) float32 in [0, 1].
        """
        return None

    def describe(self, names: Sequence[str], predictions: Predictions) -> Description:
        """Describe the fitted fusion.

        Args:
            names: Names of the members that it was fitted on.
            predictions: Predictions on which to count the networks that it runs.
        """
        return Description()

    def doubts(self, name: str) -> list[str]:
        """Return reasons, as sentences, why its gain may not carry over; not shown if unseen rows confirm the gain.

        Args:
            name: Name of the fusion.
        """
        return []

    def warnings(self, name: str, inputs: FusionInputs) -> list[str]:
        """Return warnings about the fitted fusion, as sentences.

        Args:
            name: Name of the fusion.
            inputs: Data that it was fitted on.
        """
        return []


FUSIONS: Registry[FusionMethod] = Registry("fusion", "fusion.methods", "conclave.fusions")


def asks_for_student(names: Sequence[str]) -> bool:
    """Return whether one of these fusions needs a student."""
    return any(FUSIONS[name].asks == "student" for name in names)


def by_order(names: Iterable[str]) -> list[str]:
    """Sort fusions in the order of tables."""
    return sorted(names, key=lambda name: (FUSIONS[name].order, name))
