"""Change the colors of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.config.extensions import AUGMENTATIONS, Augmentation
from workers.training.augmentations._geometry import uniform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # parts of red, green and blue in a grey value, by ITU-R BT.601


@AUGMENTATIONS.register
class Color(Augmentation):
    """Changes brightness, contrast and saturation."""

    default, largest, order = 0.2, 1.0, 30
    meaning = "largest relative change of brightness, contrast and saturation"
    can_be_captured = True

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change the colors of each image by draws of its own."""
        import torch

        x = images
        brightness, contrast, saturation = ((uniform(generator, 3, len(x)) * 2 - 1) * self.strength + 1)[..., None, None, None]
        x = x * brightness
        mean = x.mean((1, 2, 3), keepdim=True)
        x = (x - mean) * contrast + mean
        parts = torch.cat([x.new_full((1, 1, 1), part) for part in GREY])  # made on the device: a graph can hold it
        grey = (x * parts).sum(1, keepdim=True)
        changed: Tensor = ((x - grey) * saturation + grey).clamp(0, 1)
        return changed
