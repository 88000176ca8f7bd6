"""Augment whole batches on the device, deterministically from a generator.

Augmentations that only move pixels work on uint8 images, all others on float32 images in [0, 1]. Their class attribute `order`,
not the team file, sets the order in which they run. Augmentations that mix images run last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.config.extensions import AUGMENTATIONS, Augmentation, Labels, is_reference, load_reference
from workers.config.recipe import Augment
from workers.errors import UserInputError


def make_augmentations(recipe: Sequence[Augment]) -> list[Augmentation]:
    """Build a recipe's augmentations, in the order in which they run.

    Raises:
        UserInputError: If a custom augmentation cannot be imported, or does not subclass Augmentation.
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
        Images (N, 3, H, W) float32 in [0, 1], and their labels.
    """
    return mix(transform(images, augmentations, generator), labels, augmentations, generator)


def transform(images: Tensor, augmentations: Sequence[Augmentation], generator: torch.Generator) -> Tensor:
    """Apply augmentations without mixing images. Arguments and returned images as in `augment`.

    Of features (N, V, D) that a frozen backbone has computed for V views of each image, it takes a view at random: (N, D).
    """
    if images.is_floating_point():
        views = torch.randint(images.shape[1], (len(images),), generator=generator, device=images.device)
        return images[torch.arange(len(images), device=images.device), views]
    for augmentation in augmentations:
        if augmentation.moves_pixels:
            images = augmentation.apply(images, generator)
    x = to_float(images)
    for augmentation in augmentations:
        if not augmentation.moves_pixels:
            x = augmentation.apply(x, generator)
    return x


def mix(x: Tensor, labels: Tensor, augmentations: Sequence[Augmentation], generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Mix the images (N, 3, H, W) of a batch, after `transform`. Return the images and their labels."""
    mixed = Labels(labels, labels)
    for augmentation in augmentations:
        x, mixed = augmentation.mix(x, mixed, generator)
    return x, Labels(*mixed)


def to_float(images: Tensor) -> Tensor:
    """Convert (N, H, W, 3) uint8 images to (N, 3, H, W) float32 in [0, 1], in channels_last memory order.

    Of features (N, V, D) that a frozen backbone has computed, return those of the first view, which is the image: (N, D).
    """
    if images.is_floating_point():
        return images[:, 0]
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255)
