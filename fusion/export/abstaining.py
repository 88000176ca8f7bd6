"""Let an exported model abstain: add prediction sets and the members' disagreement to its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion.export.fused_model import FusedModel
from fusion.metrics.conformal import ROUNDING
from workers.training.augmentation import to_float

OUTPUTS = ("probabilities", "sets", "disagreement")
SMALLEST = 1e-12


class AbstainingModel(nn.Module):
    """A fused model with prediction sets: (N, H, W, 3) uint8 -> probabilities (N, C), sets (N, C) bool, disagreement (N,).

    Args:
        model: The fused model.
        level: Level of the prediction sets, from `fit_level`.
    """

    def __init__(self, model: FusedModel, level: float) -> None:
        super().__init__()
        self.model, self.level = model, level

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the probabilities, the prediction sets as a mask, and the members' disagreement in nats."""
        return self._outputs(*self.model.answer(to_float(images)))

    def conclude(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs from the features of all networks."""
        return self._outputs(*self.model.answer_features(features))

    def _outputs(self, probabilities: Tensor, logits: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        ordered, order = probabilities.sort(1, descending=True)
        before = torch.zeros_like(probabilities).scatter(1, order, ordered.cumsum(1) - ordered)
        return probabilities, before <= self.level + ROUNDING, disagreement(torch.stack(logits).softmax(2))


def disagreement(probabilities: Tensor) -> Tensor:
    """Return the entropy of the members' mean minus the mean of their entropies: (M, N, C) -> (N,)."""
    return (_entropy(probabilities.mean(0)) - _entropy(probabilities).mean(0)).clamp(min=0.0)


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp(min=SMALLEST).log()).sum(-1)
