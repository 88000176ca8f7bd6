"""scikit-learn's digits, which need no file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workers.config.extensions import LAYOUTS
from workers.data.layout import Item, Layout


@LAYOUTS.register
class Digits(Layout):
    """scikit-learn's digits (Alpaydin and Kaynak 1998): 1,797 grey 8x8 images with values from 0 to 16."""

    default_size, needs_root, is_on_disk = 8, False, False

    def items(self) -> Iterator[Item]:
        """Yield every image."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.expected = len(digits.target)
        pixels = np.repeat(np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None], 3, axis=-1)
        for row, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            yield Item(f"digits/{row:04d}", str(label), "", image)
