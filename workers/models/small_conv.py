"""Convolve 1x1 and 2x2 feature maps with 3x3 kernels as one matrix product: exact, and several times as fast.

On such maps most of a kernel falls on padding: eight of nine taps on 1x1, five of nine on 2x2. Convolution kernels multiply by
those zeros, once forward and twice backward. ResNet18 with its usual stem has maps of 2x2 and 1x1 in half of its layers at
32 x 32 pixels. `benchmarks/train.py` measures the difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallConv2d(nn.Conv2d):
    """A Conv2d with a 3x3 kernel and padding 1: (N, C, H, W) -> (N, O, H', W'), the same numbers up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, with a matrix product if the map is small."""
        side = self.small_side(x)
        if not side:
            return super().forward(x)
        side_after = self.side_after(side)
        kind = x.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight.dtype
        matrix = _Taps.apply(self.weight, side, side_after, precision)
        bias = None if self.bias is None else self.bias.repeat(side_after**2)
        result = F.linear(x.permute(0, 2, 3, 1).flatten(1), matrix, bias)
        return result.view(-1, side_after, side_after, self.out_channels).permute(0, 3, 1, 2)

    def small_side(self, x: Tensor) -> int:
        """Return the side of a 1x1 or 2x2 map, and 0 for any other map."""
        height, width = x.shape[-2:]
        return width if height == width and width <= 2 else 0

    def side_after(self, side: int) -> int:
        """Return the side of the result for a 1x1 or 2x2 map."""
        return 1 if self.stride[0] == 2 else side


class _Taps(torch.autograd.Function):
    """Taps of a kernel (O, C, 3, 3) that overlap a small feature map, for each output pixel: (after² O, side² C).

    Autograd would fill a kernel of zeros for the gradient of each slice, which took a fifth of a ResNet18 step at 32 x 32. One is
    enough. Gradients are summed in autograd's order, so the numbers are the same.
    """

    @staticmethod
    def forward(weight: Tensor, side: int, side_after: int, precision: torch.dtype) -> Tensor:
        kernel = weight.permute(0, 2, 3, 1)  # channels last, like all tensors here
        outputs, channels = weight.shape[:2]
        shape = (side_after, side_after, outputs, side, side, channels)
        matrix = weight.new_empty(shape, dtype=precision)
        for i, j, rows, columns in _met(side, side_after):
            matrix[i, j].copy_(kernel[:, rows, columns])
        return matrix.view(side_after**2 * outputs, side**2 * channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, torch.dtype], output: Tensor) -> None:
        weight, ctx.side, ctx.side_after, _ = inputs
        ctx.shape, ctx.dtype = weight.shape, weight.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        outputs, channels, *kernel = ctx.shape
        taps = gradient.reshape(ctx.side_after, ctx.side_after, outputs, ctx.side, ctx.side, channels)
        result = gradient.new_zeros((outputs, *kernel, channels), dtype=ctx.dtype)
        (i, j, rows, columns), *others = reversed(_met(ctx.side, ctx.side_after))
        result[:, rows, columns] = taps[i, j]
        for i, j, rows, columns in others:
            result[:, rows, columns] += taps[i, j]
        return result.permute(0, 3, 1, 2), None, None, None


def _met(side: int, side_after: int) -> list[tuple[int, int, slice, slice]]:
    """Return each output pixel with the rows and columns of a 3x3 kernel that overlap the map there."""
    met = [slice(1 - place, 1 - place + side) for place in range(side_after)]
    return [(i, j, rows, columns) for i, rows in enumerate(met) for j, columns in enumerate(met)]


class StridedConv2d(nn.Conv2d):
    """A strided Conv2d, (N, C, H, W) -> (N, O, H', W'), with correct bfloat16 gradients on a CPU too.

    If a map is smaller than the stride, oneDNN leaves the weight gradient uninitialised at taps that overlap no pixel. Such a map
    is convolved with stride one, and the result is subsampled.
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
    """Switch suitable convolutions to SmallConv2d or StridedConv2d. Parameters, names and layout stay the same."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = SmallConv2d if _fits(module) else StridedConv2d if _is_strided(module) else nn.Conv2d


def use_plain_conv(network: nn.Module) -> None:
    """Undo `use_small_conv`, for tools that support only plain Conv2d."""
    for module in network.modules():
        if type(module) in FORMS:
            module.__class__ = nn.Conv2d


@contextlib.contextmanager
def plain_convolutions(network: nn.Module) -> Iterator[None]:
    """Make all convolutions plain inside the context."""
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
