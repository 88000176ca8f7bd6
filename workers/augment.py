"""Augmentations on whole batches, on the device, deterministic from the generator they are given.

Geometry that only moves pixels (flip, crop) works on uint8; the rest on float32 in [0, 1]. The order is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.recipe import Augment

Labels = tuple[Tensor, Tensor, float]


def augment(images: Tensor, labels: Tensor, recipe: tuple[Augment, ...], generator: torch.Generator) -> tuple[Tensor, Labels]:
    """(N, H, W, 3) uint8, (N,) -> (N, 3, H, W) float32 in [0, 1], and (labels, other labels, share of the first)."""
    strength = {a.name: a.strength for a in recipe}
    for name, move in MOVES.items():
        if name in strength:
            images = move(images, strength[name], generator)
    x = to_float(images)
    for name, change in CHANGES.items():
        if name in strength:
            x = change(x, strength[name], generator)
    if "mixup" in strength:
        return _mixup(x, labels, strength["mixup"], generator)
    return x, (labels, labels, 1.0)


def to_float(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [0, 1], in channels_last memory order."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255)


def _rand(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _flip(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    chosen = _rand(generator, len(images)) < probability
    return torch.where(chosen[:, None, None, None], images.flip(2), images)


def _pixels(strength: float, side: int) -> int:
    """A share of the side below 1, pixels from 1 on."""
    return max(1, round(strength * side if strength < 1 else strength))


def _crop(images: Tensor, padding: float, generator: torch.Generator) -> Tensor:
    """Pad by zeros, then take a window at a random place: one gather of whole rows, out of a view of all windows."""
    n, side = len(images), images.shape[1]
    pad = _pixels(padding, side)
    padded = F.pad(images, (0, 0, pad, pad, pad, pad)).contiguous()
    down, right = torch.randint(0, 2 * pad + 1, (2, n), generator=generator, device=generator.device)
    wide = side + 2 * pad
    every = n * wide * wide - (side - 1) * (wide + 1)  # a window begins at each pixel but those at the very end
    windows = padded.view(-1).as_strided((every, side, side * 3), (3, wide * 3, 1))
    image = torch.arange(n, device=images.device) * (wide * wide)
    return windows[image + down * wide + right].view(n, side, side, 3)


def _color(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    brightness, contrast, saturation = ((_rand(generator, 3, len(x)) * 2 - 1) * strength + 1)[..., None, None, None]
    x = x * brightness
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * contrast + mean
    grey = (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    changed: Tensor = ((x - grey) * saturation + grey).clamp(0, 1)
    return changed


def _rotate(x: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    angle = (_rand(generator, len(x)) * 2 - 1) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    rotated: Tensor = F.grid_sample(x, grid, align_corners=False)
    return rotated


def _holes(x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    side = torch.arange(x.shape[-1], device=x.device)
    rows = (side >= top[:, None]) & (side < (top + height)[:, None])
    columns = (side >= left[:, None]) & (side < (left + width)[:, None])
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)


def _cutout(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A square hole around a random centre (DeVries and Taylor 2017); it may reach over the border."""
    n, side = len(x), x.shape[-1]
    hole = torch.full((n,), _pixels(strength, side), device=x.device)
    centres = torch.randint(0, side, (2, n), generator=generator, device=generator.device)
    return _holes(x, centres[0] - hole // 2, centres[1] - hole // 2, hole, hole)


def _erase(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """A random rectangle of 2 to 33 % of the area (Zhong et al. 2017), in a share of the images."""
    n, side = len(x), x.shape[-1]
    chosen, area, aspect, down, right = _rand(generator, 5, n)
    area = (0.02 + 0.31 * area) * side * side * (chosen < probability)
    aspect = torch.exp((aspect * 2 - 1) * math.log(3.3))
    height = (area * aspect).sqrt().round().clamp(max=side)
    width = (area / aspect).sqrt().round().clamp(max=side)
    return _holes(x, (down * (side - height + 1)).floor(), (right * (side - width + 1)).floor(), height, width)


def _mixup(x: Tensor, labels: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """One Beta(alpha, alpha) share a batch (Zhang et al. 2018), the second images a permutation of the first."""
    gammas = torch._standard_gamma(torch.full((2,), alpha, device=x.device), generator=generator)
    share = float(gammas[0] / gammas.sum()) if float(gammas.sum()) > 0 else 1.0
    other = torch.randperm(len(x), generator=generator, device=x.device)
    return x * share + x[other] * (1 - share), (labels, labels[other], share)


Change = Callable[[Tensor, float, torch.Generator], Tensor]
MOVES: dict[str, Change] = {"flip": _flip, "crop": _crop}
CHANGES: dict[str, Change] = {"color": _color, "rotate": _rotate, "cutout": _cutout, "erase": _erase}
