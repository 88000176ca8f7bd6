"""Convolve small maps well: 3x3 kernels on one or two pixels per side as one matrix product, exact and several times as fast.

On such maps most of a kernel falls on padding: eight of nine taps on 1x1, five of nine on 2x2. Convolution kernels multiply by
those zeros, once forward and twice backward. ResNet18 with its usual stem has maps of 2x2 and 1x1 in half of its layers at
32 x 32 pixels. `benchmarks/train.py` measures the difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
        side_after = self.side_after(side)
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

    def side_after(self, side: int) -> int:
        """Return the side of the result, for a map of one or two pixels per side."""
        return 1 if self.stride[0] == 2 else side


class StridedConv2d(nn.Conv2d):
    """A Conv2d with a stride: (N, C, H, W) -> (N, O, H', W'), whose gradients are right in bfloat16 on a CPU too.

    Where a map is smaller than the stride, oneDNN leaves the weights' gradient uninitialised at the taps that meet no pixel. So
    such a map is convolved with a stride of one, of which the places are taken that the stride would reach.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        is_low = x.device.type == "cpu" and (x.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu"))
        (down, right), (height, width) = self.stride, x.shape[-2:]
        if not is_low or (height >= down and width >= right):
            return super().forward(x)
        every = F.conv2d(x, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        return every[..., ::down, ::right]


FORMS: tuple[type[nn.Conv2d], ...] = (SmallConv2d, StridedConv2d)


def use_small_conv(network: nn.Module) -> None:
    """Give every convolution that fits one of our forms. Its parameters, their names and their layout stay as they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = SmallConv2d if _fits(module) else StridedConv2d if _is_strided(module) else nn.Conv2d


def use_plain_conv(network: nn.Module) -> None:
    """Turn our forms back into plain convolutions, for tools that know those alone."""
    for module in network.modules():
        if type(module) in FORMS:
            module.__class__ = nn.Conv2d


@contextlib.contextmanager
def plain_convolutions(network: nn.Module) -> Iterator[None]:
    """Make all convolutions plain for as long as the context lasts."""
    ours = [(module, type(module)) for module in network.modules() if type(module) in FORMS]
    use_plain_conv(network)
    try:
        yield
    finally:
        for module, form in ours:
            module.__class__ = form


def _fits(conv: nn.Conv2d) -> bool:
    is_plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return is_plain and conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.stride in ((1, 1), (2, 2))


def _is_strided(conv: nn.Conv2d) -> bool:
    return max(conv.stride) > 1 and max(conv.kernel_size) > 1 and conv.padding_mode == "zeros"
