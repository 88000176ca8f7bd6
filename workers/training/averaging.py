"""Average weights along a training: for `train.ema`, whose average is the result, and for a member's `average`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from workers.config.recipe import Ema, Swa
from workers.models.network import Network


class WeightAverage:
    """Follows a network: over its steps where the average is exponential, over its last epochs where it is stochastic.

    Args:
        network: The network that is trained.
        rule: How to average.
        epochs: Number of epochs of the whole training.
    """

    def __init__(self, network: Network, rule: Ema | Swa, epochs: int) -> None:
        self.rule = rule
        self.first = epochs - max(1, round(epochs * rule.last)) if isinstance(rule, Swa) else 0
        update = get_ema_multi_avg_fn(rule.decay) if isinstance(rule, Ema) else None  # type: ignore[no-untyped-call]
        self.model = AveragedModel(network, multi_avg_fn=update, use_buffers=isinstance(rule, Ema))

    @property
    def network(self) -> Network:
        """The network with averaged weights."""
        return self.model.module  # type: ignore[return-value]

    def on_step_end(self, network: Network) -> None:
        """Follow an optimizer step."""
        if isinstance(self.rule, Ema):
            self.model.update_parameters(network)

    def on_epoch_end(self, network: Network, epochs_done: int) -> None:
        """Follow the end of an epoch."""
        if isinstance(self.rule, Swa) and epochs_done > self.first:
            self.model.update_parameters(network)

    def update_batchnorm_stats(self, images: Iterable[Tensor], device: torch.device) -> None:
        """Take batch statistics anew from images (n, 3, H, W): those of a mean of weights belong to no trained network."""
        if isinstance(self.rule, Swa):
            update_bn(images, self.network, device)
