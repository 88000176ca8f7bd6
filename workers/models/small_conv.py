"""Compute 3x3 convolutions of maps of one or two pixels per side as one matrix product: exact, and several times as fast.

On such maps most of a kernel falls on padding: eight of nine taps on 1x1, five of nine on 2x2. Convolution kernels multiply by
those zeros, once forward and twice backward. ResNet18 with its usual stem has maps of 2x2 and 1x1 in half of its layers at
32 x 32 pixels. `benchmarks/train.py` measures the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallConv2d(nn.Conv2d):
    """A Conv2d with a 3x3 kernel and padding 1: (N, C, H, W) -> (N, O, H', W'), the same numbers up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, by a matrix product where the map is small."""
        side = self.small_side(x)
        if not side:
            return super().forward(x)
        side_after = 1 if self.stride[0] == 2 else side
        # of the kernel the taps that meet a pixel of the map, for each pixel of the result; channels last, as all lies in memory
        weight = self.weight.permute(0, 2, 3, 1)
        taps = [
            weight[:, 1 - i : 1 - i + side, 1 - j : 1 - j + side].flatten(1) for i in range(side_after) for j in range(side_after)
        ]
        matrix = taps[0] if len(taps) == 1 else torch.cat(taps)  # (after² O, side² C)
        bias = None if self.bias is None else self.bias.repeat(len(taps))
        result = F.linear(x.permute(0, 2, 3, 1).flatten(1), matrix, bias)
        return result.view(-1, side_after, side_after, self.out_channels).permute(0, 3, 1, 2)

    def small_side(self, x: Tensor) -> int:
        """Return the side of a square map of one or two pixels per side, and 0 for any other map."""
        height, width = x.shape[-2:]
        return width if height == width and width <= 2 else 0


def use_small_conv(network: nn.Module) -> None:
    """Give every convolution that fits the fast form. Its parameters, their names and their layout stay as they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = SmallConv2d


def use_plain_conv(network: nn.Module) -> None:
    """Turn fast convolutions back into plain ones, for tools that know those alone."""
    for module in network.modules():
        if type(module) is SmallConv2d:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


def _fits(conv: nn.Conv2d) -> bool:
    is_plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return is_plain and conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.stride in ((1, 1), (2, 2))
