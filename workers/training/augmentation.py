"""Augment whole batches on the device, deterministically from a generator.

Augmentations that only move pixels (flip, crop) work on uint8 images, the others on float32 in [0, 1]. They are applied in the
order of `AUGMENTATIONS`, whatever the order in the team file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.config.recipe import Augment

# (labels, labels of the images that were mixed in, share of the first)
Labels = tuple[Tensor, Tensor, float]


@dataclass(frozen=True)
class Augmentation:
    """One way to change a batch of images.

    Attributes:
        apply: Takes images, the strength and a generator on the images' device, and returns changed images of the same shape.
        moves_pixels: Whether it takes and returns (N, H, W, 3) uint8. The others take and return (N, 3, H, W) float32 in [0, 1].
    """

    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    moves_pixels: bool = False


def augment(images: Tensor, labels: Tensor, recipe: tuple[Augment, ...], generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Apply a recipe to a batch.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64.
        recipe: The augmentations with their strengths.
        generator: Source of all randomness, on the images' device.

    Returns:
        (N, 3, H, W) float32 in [0, 1]; and the labels, the labels of the images that were mixed in, and the share of the first.
    """
    strengths = {augmentation.name: augmentation.strength for augmentation in recipe}
    wanted = [(augmentation, strengths[name]) for name, augmentation in AUGMENTATIONS.items() if name in strengths]
    for augmentation, strength in wanted:
        if augmentation.moves_pixels:
            images = augmentation.apply(images, strength, generator)
    x = to_float(images)
    for augmentation, strength in wanted:
        if not augmentation.moves_pixels:
            x = augmentation.apply(x, strength, generator)
    if "mixup" in strengths:
        return _mixup(x, labels, strengths["mixup"], generator)
    return x, (labels, labels, 1.0)


def to_float(images: Tensor) -> Tensor:
    """Convert (N, H, W, 3) uint8 images to (N, 3, H, W) float32 in [0, 1], in channels_last memory order."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255)


def _rand(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _flip(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    chosen = _rand(generator, len(images)) < probability
    return torch.where(chosen[:, None, None, None], images.flip(2), images)


def _pixels(strength: float, side: int) -> int:
    """Return a length in pixels: a strength below 1 is a share of the side, from 1 on it counts pixels."""
    return max(1, round(strength * side if strength < 1 else strength))


def _crop(images: Tensor, padding: float, generator: torch.Generator) -> Tensor:
    """Pad with zeros, then cut a window at a random place: one gather of whole rows, from a view of all windows."""
    n, side = len(images), images.shape[1]
    pad = _pixels(padding, side)
    padded = F.pad(images, (0, 0, pad, pad, pad, pad)).contiguous()
    down, right = torch.randint(0, 2 * pad + 1, (2, n), generator=generator, device=generator.device)
    wide = side + 2 * pad
    count = n * wide * wide - (side - 1) * (wide + 1)  # a window begins at each pixel but those at the very end
    windows = padded.view(-1).as_strided((count, side, side * 3), (3, wide * 3, 1))
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
    """Cut a square hole around a random centre, which may reach over the border (DeVries and Taylor 2017, arXiv:1708.04552)."""
    n, side = len(x), x.shape[-1]
    hole = torch.full((n,), _pixels(strength, side), device=x.device)
    centres = torch.randint(0, side, (2, n), generator=generator, device=generator.device)
    return _holes(x, centres[0] - hole // 2, centres[1] - hole // 2, hole, hole)


def _erase(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Erase a random rectangle of 2 to 33 % of the area, in a share of the images (Zhong et al. 2017, arXiv:1708.04896)."""
    n, side = len(x), x.shape[-1]
    chosen, area, aspect, down, right = _rand(generator, 5, n)
    area = (0.02 + 0.31 * area) * side * side * (chosen < probability)
    aspect = torch.exp((aspect * 2 - 1) * math.log(3.3))
    height = (area * aspect).sqrt().round().clamp(max=side)
    width = (area / aspect).sqrt().round().clamp(max=side)
    return _holes(x, (down * (side - height + 1)).floor(), (right * (side - width + 1)).floor(), height, width)


def _mixup(x: Tensor, labels: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Mix a batch with a permutation of itself, by one Beta(alpha, alpha) share (Zhang et al. 2018, arXiv:1710.09412)."""
    gammas = torch._standard_gamma(torch.full((2,), alpha, device=x.device), generator=generator)
    share = float(gammas[0] / gammas.sum()) if float(gammas.sum()) > 0 else 1.0
    other = torch.randperm(len(x), generator=generator, device=x.device)
    return x * share + x[other] * (1 - share), (labels, labels[other], share)


AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": Augmentation(_flip, moves_pixels=True),
    "crop": Augmentation(_crop, moves_pixels=True),
    "color": Augmentation(_color),
    "rotate": Augmentation(_rotate),
    "cutout": Augmentation(_cutout),
    "erase": Augmentation(_erase),
}
