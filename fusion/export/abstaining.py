"""Let an exported model abstain: compute prediction sets and the members' disagreement in torch."""

from __future__ import annotations

from torch import Tensor, zeros_like

from fusion.metrics.conformal import ROUNDING

SMALLEST = 1e-12


def prediction_sets(probabilities: Tensor, level: float) -> Tensor:
    """Return the prediction sets as a mask (N, C), as `fusion.metrics.conformal` does, at a level from `fit_level`."""
    ordered, order = probabilities.sort(1, descending=True)
    before = zeros_like(probabilities).scatter(1, order, ordered.cumsum(1) - ordered)
    return before <= level + ROUNDING


def disagreement(probabilities: Tensor) -> Tensor:
    """Return the entropy of the members' mean minus the mean of their entropies: (M, N, C) -> (N,)."""
    return (_entropy(probabilities.mean(0)) - _entropy(probabilities).mean(0)).clamp(min=0.0)


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp(min=SMALLEST).log()).sum(-1)
