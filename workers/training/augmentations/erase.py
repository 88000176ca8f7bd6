"""Erase a rectangle."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workers.config.extensions import AUGMENTATIONS, Augmentation
from workers.training.augmentations._geometry import fill_rectangles, uniform

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@AUGMENTATIONS.register
class Erase(Augmentation):
    """Erases a random rectangle of 2 to 33 % of the area, in a share of the images.

    Source: Zhong et al. 2017, arXiv:1708.04896.
    """

    default, largest, order = 0.25, 1.0, 60
    meaning = "probability of erasing a random rectangle"
    can_be_captured = True

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Erase one rectangle in a share of the images."""
        n, side = len(images), images.shape[-1]
        chosen, area, aspect, down, right = uniform(generator, 5, n)
        area = (0.02 + 0.31 * area) * side * side * (chosen < self.strength)
        aspect = ((aspect * 2 - 1) * math.log(3.3)).exp()
        height = (area * aspect).sqrt().round().clamp(max=side)
        width = (area / aspect).sqrt().round().clamp(max=side)
        top, left = (down * (side - height + 1)).floor(), (right * (side - width + 1)).floor()
        return fill_rectangles(images, top, left, height, width)
