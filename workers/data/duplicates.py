"""Find images that are there twice: equal ones by a digest, and nearly equal ones by a perceptual hash."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELLS = 8  # on a side; each of the 64 is compared with the one to its right, the last of a row with the first
NEARLY = 8.0  # mean difference of two images' pixels, of 255, below which they count as nearly the same


def perceptual_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the difference hash of images (N, S, S, 3): each bit says whether a cell is brighter than the one to its right.

    Brightness is that of the green channel, which has most of it.
    """
    size = images.shape[1]
    starts = np.arange(CELLS) * size // CELLS
    sums = np.add.reduceat(np.add.reduceat(images[..., 1].astype(np.uint32), starts, axis=1), starts, axis=2)
    means = sums / np.diff([*starts, size])  # cells may differ in width by a pixel
    bits = means > np.roll(means, -1, axis=2)
    return np.packbits(bits.reshape(len(images), CELLS**2), axis=1).view(np.uint64).reshape(-1)
