"""Rotate images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workers.config.extensions import AUGMENTATIONS, Augmentation
from workers.training.augmentations._geometry import uniform

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@AUGMENTATIONS.register
class Rotate(Augmentation):
    """Rotates images by a random angle."""

    default, largest, order = 15.0, 180.0, 40
    meaning = "largest angle in degrees"
    can_be_captured = True

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Rotate each image by an angle of its own."""
        import torch
        from torch.nn import functional as F

        angle = (uniform(generator, len(images)) * 2 - 1) * math.radians(self.strength)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        rotated: Tensor = F.grid_sample(images, grid, align_corners=False)
        return rotated
