"""Flip images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.config.extensions import AUGMENTATIONS, Augmentation
from workers.training.augmentations._geometry import uniform

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@AUGMENTATIONS.register
class Flip(Augmentation):
    """Flips images from left to right."""

    default, largest, order = 0.5, 1.0, 10
    meaning = "probability of a horizontal flip"
    moves_pixels = True
    can_be_captured = True

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Flip a share of the images."""
        chosen = uniform(generator, len(images)) < self.strength
        return images.flip(2).where(chosen[:, None, None, None], images)
