"""Draw random positions and fill colours, for several augmentations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Return uniform draws from [0, 1) on the generator's device."""
    import torch

    return torch.rand(shape, generator=generator, device=generator.device)


def pixels(strength: float, side: int) -> int:
    """Return a length in pixels: a strength below 1 is a share of the side, from 1 on it counts pixels."""
    return max(1, round(strength * side if strength < 1 else strength))


def fill_rectangles(x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Fill one rectangle of each image (N, 3, H, W) with grey; places and sizes are (N,), in pixels."""
    import torch

    side = torch.arange(x.shape[-1], device=x.device)
    rows = (side >= top[:, None]) & (side < (top + height)[:, None])
    columns = (side >= left[:, None]) & (side < (left + width)[:, None])
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)
