"""Weights averaged along a training: of `train.ema`, which are the fit's result, and of a member's `average`, another member."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from workers.models import Network
from workers.recipe import Ema, Swa


class Averaged:
    """Follows a network: over its steps where exponential, over the ends of its last epochs where stochastic."""

    def __init__(self, network: Network, how: Ema | Swa, epochs: int) -> None:
        self.how = how
        self.first = epochs - max(1, round(epochs * how.last)) if isinstance(how, Swa) else 0
        rule = get_ema_multi_avg_fn(how.decay) if isinstance(how, Ema) else None  # type: ignore[no-untyped-call]
        self.model = AveragedModel(network, multi_avg_fn=rule, use_buffers=isinstance(how, Ema))

    @property
    def network(self) -> Network:
        return self.model.module  # type: ignore[return-value]

    def step(self, network: Network) -> None:
        if isinstance(self.how, Ema):
            self.model.update_parameters(network)

    def epoch(self, network: Network, done: int) -> None:
        """After epoch number `done`, counted from 1."""
        if isinstance(self.how, Swa) and done > self.first:
            self.model.update_parameters(network)

    def settle(self, images: Iterable[Tensor], device: torch.device) -> None:
        """Batch statistics of a mean of weights are those of no network that was trained: take them from the images."""
        if isinstance(self.how, Swa):
            update_bn(images, self.network, device)
