"""3x3 convolutions of maps of one or two pixels a side, as one matrix product: exact, and several times as fast.

On such maps most of a kernel falls on padding: eight of nine taps on 1x1, five of nine on 2x2. Convolution kernels multiply by
those zeros, forward and twice backward. ResNet18 with its usual stem has maps of 2x2 and 1x1 in half of its layers at
32 x 32 pixels. `benchmarks/train.py` measures the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallMapConv2d(nn.Conv2d):
    """A Conv2d with a 3x3 kernel and padding 1: (N, C, H, W) -> (N, O, H', W'), the same numbers up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        side = self.small_side(x)
        if not side:
            return super().forward(x)
        after = 1 if self.stride[0] == 2 else side
        # of the kernel the taps that meet a pixel of the map, for each pixel of the result; channels last, as all lies in memory
        last = self.weight.permute(0, 2, 3, 1)
        met = [last[:, 1 - i : 1 - i + side, 1 - j : 1 - j + side].flatten(1) for i in range(after) for j in range(after)]
        matrix = met[0] if len(met) == 1 else torch.cat(met)  # (after² O, side² C)
        bias = None if self.bias is None else self.bias.repeat(len(met))
        found = F.linear(x.permute(0, 2, 3, 1).flatten(1), matrix, bias)
        return found.view(-1, after, after, self.out_channels).permute(0, 3, 1, 2)

    def small_side(self, x: Tensor) -> int:
        """The side of a map of one or two pixels a side; 0 of any other."""
        height, width = x.shape[-2:]
        return width if height == width and width <= 2 else 0


def speed_up(network: nn.Module) -> None:
    """Give every convolution of that kind this form. Its parameters, their names and their layout stay as they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = SmallMapConv2d


def slow_down(network: nn.Module) -> None:
    """The opposite: plain convolutions again, for whoever knows those alone."""
    for module in network.modules():
        if type(module) is SmallMapConv2d:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


def _fits(conv: nn.Conv2d) -> bool:
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return plain and conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.stride in ((1, 1), (2, 2))
