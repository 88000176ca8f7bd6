"""Freeze a fused model for inference: fold batch norms, and turn convolutions of small maps into matrices."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from fusion.export.fused_model import FusedModel
from workers.models.network import Network
from workers.models.small_conv import SmallConv2d, use_plain_conv, use_small_conv

TOLERANCE = 1e-3  # allowed rounding error of folding, relative to a network's largest feature


class FoldedConv(nn.Module):
    """A convolution of a small map as one constant matrix: (N, C, s, s) -> (N, O, s', s').

    Args:
        conv: The convolution.
        side: Side s of the feature map.
    """

    def __init__(self, conv: SmallConv2d, side: int) -> None:
        super().__init__()
        self.matrix: Tensor
        self.bias: Tensor | None
        after = range(conv.side_after(side))
        self.shape = (conv.out_channels, len(after), len(after))
        with torch.no_grad():
            # for each output pixel, the kernel taps that overlap the feature map
            taps = [conv.weight[:, :, 1 - i : 1 - i + side, 1 - j : 1 - j + side].flatten(1) for i in after for j in after]
            self.register_buffer("matrix", torch.stack(taps, 1).flatten(0, 1))
            spread = None if conv.bias is None else conv.bias.repeat_interleave(len(taps))
            self.register_buffer("bias", spread)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a feature map."""
        return F.linear(x.flatten(1), self.matrix, self.bias).view(-1, *self.shape)


def freeze_for_inference(model: FusedModel, size: int) -> FusedModel:
    """Return a frozen copy: the same function of images (N, size, size, 3), up to rounding."""
    members = [_freeze_network(cast(Network, member), size) for member in model.members]
    return FusedModel(members, copy.deepcopy(model.combiner), model.temperature, model.flips).eval()


@torch.no_grad()
def _freeze_network(network: Network, size: int) -> Network:
    """Freeze one network, or copy it unchanged if it cannot be traced or its outputs would change."""
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = network.eval().features(images)
    try:
        trunk = _replace_small_convs(_fold_batchnorms(network.trunk), (images - network.mean) / network.std)
        frozen = Network(trunk, copy.deepcopy(network.head)).eval()
        tolerance = TOLERANCE * float(expected.abs().max())
        is_same = torch.allclose(frozen.features(images), expected, rtol=0, atol=tolerance)
    except Exception:  # a custom network may raise anything when traced
        is_same = False
    return frozen if is_same else copy.deepcopy(network)


def _fold_batchnorms(trunk: nn.Module) -> nn.Module:
    """Fold batch norms into convolutions; torch supports only plain convolutions."""
    plain = copy.deepcopy(trunk)
    use_plain_conv(plain)
    folded = fuse(plain)
    use_small_conv(folded)
    return folded


def _replace_small_convs(trunk: nn.Module, normalized: Tensor) -> nn.Module:
    """Replace each convolution of a small map by a constant matrix; a forward pass shows which these are."""
    sides: dict[str, tuple[SmallConv2d, int]] = {}

    def record_side(name: str, conv: SmallConv2d) -> torch.utils.hooks.RemovableHandle:
        def record(_: nn.Module, inputs: Sequence[Tensor]) -> None:
            sides[name] = conv, conv.small_side(inputs[0])

        return conv.register_forward_pre_hook(record)

    handles = [record_side(name, module) for name, module in trunk.named_modules() if isinstance(module, SmallConv2d)]
    trunk(normalized)
    for handle in handles:
        handle.remove()
    for name, (conv, side) in sides.items():
        if side:
            trunk.set_submodule(name, FoldedConv(conv, side))
    return trunk
