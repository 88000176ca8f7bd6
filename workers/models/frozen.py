"""A network whose backbone is frozen: only a linear head on its features is trained."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from workers.models.network import Network

SMALLEST_SCALE = 1e-6  # lower bound on the scale that a feature is divided by


class Standardized(nn.Module):
    """A linear head on standardized features: (N, D) -> (N, C). One learning rate suits the features of any backbone.

    Args:
        head: The head on raw features, which it starts as.
        mean: (D,), the features' means.
        scale: (D,), their standard deviations.
    """

    def __init__(self, head: nn.Linear, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        has_bias = head.bias is not None
        self.register_buffer("mean", mean if has_bias else torch.zeros_like(mean))  # only a bias can make up for a mean
        self.register_buffer("scale", scale)
        self.linear = nn.Linear(head.in_features, head.out_features, bias=has_bias)
        with torch.no_grad():
            self.linear.weight.copy_(head.weight * scale)
            if has_bias:
                self.linear.bias.copy_(head.bias + head.weight @ mean)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits."""
        return cast(Tensor, self.linear((features - self.mean) / self.scale))

    @torch.no_grad()
    def copy_into(self, head: nn.Linear) -> None:
        """Make a head on raw features the same function."""
        weight = self.linear.weight.double() / self.scale.double()
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(self.linear.bias.double() - weight @ self.mean.double())


class HeadNetwork(Network):
    """The trained part of a network with a frozen backbone. It takes features (N, D) in the place of images.

    Args:
        head: The head of the network.
        features: (n, D) features of the rows to train on, of which it takes means and standard deviations.
    """

    def __init__(self, head: nn.Linear, features: Tensor) -> None:
        spread = features.std(0, correction=0).clamp(min=SMALLEST_SCALE)
        super().__init__(nn.Identity(), Standardized(head, features.mean(0), spread))

    def features(self, x: Tensor) -> Tensor:
        """Return the features as they are."""
        return x

    def put_into(self, network: Network) -> Network:
        """Give a network this head, and return it."""
        cast(Standardized, self.head).copy_into(cast(nn.Linear, network.head))
        return network
