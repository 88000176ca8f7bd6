"""A fused model for inference alone: batch norms folded into convolutions, products of small maps as constants."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from fusion.model import FusedModel
from workers.models import Network
from workers.small_maps import SmallMapConv2d, slow_down, speed_up

CLOSE = 1e-3  # of a network's features, relative to the largest: what folding may change, by rounding


class Product(nn.Module):
    """A convolution of a small map as one constant matrix: (N, C, s, s) -> (N, O, s', s')."""

    def __init__(self, conv: SmallMapConv2d, side: int) -> None:
        super().__init__()
        self.matrix: Tensor
        self.bias: Tensor | None
        with torch.no_grad():
            inputs = torch.eye(conv.in_channels * side * side).view(-1, conv.in_channels, side, side)
            columns = F.conv2d(inputs, conv.weight, None, conv.stride, conv.padding)
            self.shape = columns.shape[1:]
            self.register_buffer("matrix", columns.flatten(1).T.contiguous())
            spread = None if conv.bias is None else conv.bias.repeat_interleave(self.shape[1] * self.shape[2])
            self.register_buffer("bias", spread)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.matrix, self.bias).view(-1, *self.shape)


def frozen(model: FusedModel, size: int) -> FusedModel:
    """The same function of (N, size, size, 3) images, up to rounding. The original stays as it is."""
    members = [_frozen(cast(Network, member), size) for member in model.members]
    return FusedModel(members, copy.deepcopy(model.combiner), model.temperature).eval()


@torch.no_grad()
def _frozen(network: Network, size: int) -> Network:
    """A network that can't be traced, or would be another one, stays as it is."""
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = network.eval().features(images)
    try:
        trunk = _constant(_folded(network.trunk), (images - network.mean) / network.std)
        found = Network(trunk, copy.deepcopy(network.head)).eval()
        same = torch.allclose(found.features(images), expected, rtol=0, atol=CLOSE * float(expected.abs().max()))
    except Exception:  # whatever a user's own network can do when it is traced
        same = False
    return found if same else copy.deepcopy(network)


def _folded(trunk: nn.Module) -> nn.Module:
    """torch folds batch norms into plain convolutions alone."""
    plain = copy.deepcopy(trunk)
    slow_down(plain)
    folded = fuse(plain)
    speed_up(folded)
    return folded


def _constant(trunk: nn.Module, normalized: Tensor) -> nn.Module:
    """Every convolution that sees a small map becomes a product; which ones do is seen on an image."""
    seen: dict[str, tuple[SmallMapConv2d, int]] = {}

    def watch(name: str, conv: SmallMapConv2d) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, inputs: Sequence[Tensor]) -> None:
            seen[name] = conv, conv.small_side(inputs[0])

        return conv.register_forward_pre_hook(look)

    handles = [watch(name, module) for name, module in trunk.named_modules() if isinstance(module, SmallMapConv2d)]
    trunk(normalized)
    for handle in handles:
        handle.remove()
    for name, (conv, side) in seen.items():
        if side:
            trunk.set_submodule(name, Product(conv, side))
    return trunk
