"""Crop images at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.config.extensions import AUGMENTATIONS, Augmentation
from workers.training.augmentations._geometry import pixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@AUGMENTATIONS.register
class Crop(Augmentation):
    """Pads with zeros, then cuts a window at a random place."""

    default, largest, order = 0.125, 256.0, 20
    meaning = "padding before a random crop: a share of the side, or pixels from 1 on"
    moves_pixels = True
    can_be_captured = True

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Cut one window from each image: one gather of whole rows, from a view of all windows."""
        import torch
        from torch.nn import functional as F

        n, side = len(images), images.shape[1]
        pad = pixels(self.strength, side)
        padded = F.pad(images, (0, 0, pad, pad, pad, pad)).contiguous()
        down, right = torch.randint(0, 2 * pad + 1, (2, n), generator=generator, device=generator.device)
        wide = side + 2 * pad
        count = n * wide * wide - (side - 1) * (wide + 1)  # a window begins at each pixel but those at the very end
        windows = padded.view(-1).as_strided((count, side, side * 3), (3, wide * 3, 1))
        image = torch.arange(n, device=images.device) * (wide * wide)
        return windows[image + down * wide + right].view(n, side, side, 3)
