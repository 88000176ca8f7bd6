"""Assemble the fused model: uint8 images in, class probabilities out, as one torch module of members and a combiner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from fusion.export.combiners import (
    BagCombiner,
    CascadeCombiner,
    ConcatCombiner,
    LogitMeanCombiner,
    MeanCombiner,
    StackCombiner,
)
from fusion.methods.cascade import Cascade
from fusion.methods.concat import Concat
from fusion.methods.stacking import PlainStack, Stack, StackBag
from fusion.methods.voting import Student, VoteLogits
from fusion.metrics.calibration import TINY
from fusion.selection.fitting import FittedFusion
from workers.models.network import Network
from workers.training.augmentation import to_float

N = TypeVar("N", covariant=True)


class FusedModel(nn.Module):
    """Members, a combiner and a temperature as one module: (N, H, W, 3) uint8 -> (N, C) float32 probabilities.

    Args:
        members: The networks, in the order in which the combiner takes them.
        combiner: Turns the members' outputs into log-probabilities.
        temperature: The last stage.
    """

    def __init__(self, members: Sequence[nn.Module], combiner: nn.Module, temperature: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.combiner = combiner
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of images."""
        x = to_float(images)
        if isinstance(self.combiner, CascadeCombiner) and not torch.compiler.is_exporting():
            return self._calibrate(self.combiner.ask_in_turn(list(self.members), x))
        features = [cast(Network, member).features(x) for member in self.members]
        logits = [cast(Network, m).head(f) for m, f in zip(self.members, features, strict=True)]
        return self._calibrate(cast(Tensor, self.combiner(features, logits)))

    def _calibrate(self, log_probabilities: Tensor) -> Tensor:
        """Apply the temperature as `apply_temperature` does, which bounds probabilities: that counts at a high temperature."""
        return (log_probabilities.clamp(min=float(np.log(TINY))) / self.temperature).softmax(1)


@dataclass(frozen=True)
class CandidateNetworks(Generic[N]):
    """The networks that fusions are made of, or something else about each of them, such as its specification.

    Attributes:
        full: The full training of each member.
        bags: The fold trainings of each member.
        student: The student.
    """

    full: Sequence[N]
    bags: Sequence[Sequence[N]] = ()
    student: N | None = None

    def used(self, fitted: FittedFusion) -> list[N]:
        """Return those that a fusion asks, in the order in which it asks them. Members without weight are left out."""
        if isinstance(fitted.method, Student):
            assert self.student is not None
            return [self.student]
        members = used_members(fitted, len(self.full))
        if isinstance(fitted.method, StackBag):
            return [network for i in members for network in self.bags[i]]
        return [self.full[i] for i in members]


def assemble(fitted: FittedFusion, networks: CandidateNetworks[nn.Module]) -> FusedModel:
    """Return a fitted fusion as a module, in evaluation mode."""
    combiner = _make_combiner(fitted.method, used_members(fitted, len(networks.full)))
    return FusedModel(networks.used(fitted), combiner, fitted.temperature).eval()


def used_members(fitted: FittedFusion, count: int) -> list[int]:
    """Return the positions of the members that a fusion uses, of `count` members, in its own order."""
    weights = getattr(fitted.method, "weights_", None)
    if isinstance(fitted.method, Cascade):
        return [int(i) for i in fitted.method.order_]
    candidates = fitted.members if fitted.members is not None else range(count)
    return [i for i in candidates if weights is None or weights[i] > 0]


def _make_combiner(method: Any, used: list[int]) -> nn.Module:
    if isinstance(method, Concat):
        return ConcatCombiner(_tensor(method.coef_), _tensor(method.intercept_))
    if isinstance(method, Cascade):
        return CascadeCombiner(_tensor(method.temperatures_), _tensor(method.threshold_))
    if isinstance(method, VoteLogits):
        return LogitMeanCombiner(_tensor(method.weights_[used]), _tensor(method.temperatures_[used]))
    if isinstance(method, Student):
        return MeanCombiner(torch.ones(1))
    if isinstance(method, Stack | PlainStack):
        combiner_class = BagCombiner if isinstance(method, StackBag) else StackCombiner
        return combiner_class(_tensor(method.coef_), _tensor(method.intercept_), _tensor(method.temperatures_))
    return MeanCombiner(_tensor(method.weights_[used]))


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)
