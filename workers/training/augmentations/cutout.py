"""Cut a hole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.config.extensions import AUGMENTATIONS, Augmentation
from workers.training.augmentations._geometry import fill_rectangles, pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@AUGMENTATIONS.register
class Cutout(Augmentation):
    """Cuts a square hole around a random centre, which may reach over the border.

    Source: DeVries and Taylor 2017, arXiv:1708.04552.
    """

    default, largest, order = 0.5, 256.0, 50
    meaning = "side of the square hole: a share of the side, or pixels from 1 on"
    can_be_captured = True

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Cut one hole in each image."""
        import torch

        n, side = len(images), images.shape[-1]
        hole = torch.full((n,), pixels(self.strength, side), device=images.device)
        centres = torch.randint(0, side, (2, n), generator=generator, device=generator.device)
        return fill_rectangles(images, centres[0] - hole // 2, centres[1] - hole // 2, hole, hole)
