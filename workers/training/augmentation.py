"""Augment whole batches on the device, deterministically from a generator.

Augmentations that only move pixels work on uint8 images, the others on float32 in [0, 1]. They are applied in the order of their
class attribute `order`, whatever the order in the team file. Those that mix images come last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.config.extensions import AUGMENTATIONS, Augmentation, Labels, is_reference, load_reference
from workers.config.recipe import Augment
from workers.errors import UserInputError


def make_augmentations(recipe: Sequence[Augment]) -> list[Augmentation]:
    """Return the augmentations of a recipe, in the order in which they are applied.

    Raises:
        UserInputError: If one of the user's own cannot be imported, or is no Augmentation.
    """
    made: list[Augmentation] = []
    for augment in recipe:
        kind = load_reference(augment.name) if is_reference(augment.name) else AUGMENTATIONS[augment.name]
        if not (isinstance(kind, type) and issubclass(kind, Augmentation)):
            raise UserInputError(f"augment {augment.name}: it is no subclass of conclave.extending.Augmentation.")
        made.append(kind(augment.strength))
    return sorted(made, key=lambda one: one.order)


def augment(
    images: Tensor, labels: Tensor, augmentations: Sequence[Augmentation], generator: torch.Generator
) -> tuple[Tensor, Labels]:
    """Apply augmentations to a batch.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64.
        augmentations: The augmentations, in the order of `make_augmentations`.
        generator: Source of all randomness, on the images' device.

    Returns:
        (N, 3, H, W) float32 in [0, 1]; and the labels.
    """
    return mix(transform(images, augmentations, generator), labels, augmentations, generator)


def transform(images: Tensor, augmentations: Sequence[Augmentation], generator: torch.Generator) -> Tensor:
    """Apply augmentations to a batch, but mix no images. Arguments and images are those of `augment`."""
    for augmentation in augmentations:
        if augmentation.moves_pixels:
            images = augmentation.apply(images, generator)
    x = to_float(images)
    for augmentation in augmentations:
        if not augmentation.moves_pixels:
            x = augmentation.apply(x, generator)
    return x


def mix(x: Tensor, labels: Tensor, augmentations: Sequence[Augmentation], generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Mix the images (N, 3, H, W) of a batch after `transform`, where augmentations do. Return them, and their labels."""
    mixed = Labels(labels, labels)
    for augmentation in augmentations:
        x, mixed = augmentation.mix(x, mixed, generator)
    return x, Labels(*mixed)


def to_float(images: Tensor) -> Tensor:
    """Convert (N, H, W, 3) uint8 images to (N, 3, H, W) float32 in [0, 1], in channels_last memory order."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255)
