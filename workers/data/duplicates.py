"""Find duplicate images: equal images by digest, nearly equal images by perceptual hash."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELLS = 8  # per side; each of the 64 cells is compared with its right neighbour, the last of a row with the first
MAX_MEAN_DIFFERENCE = 8.0  # mean absolute pixel difference, out of 255, below which two images count as nearly equal

Pairs = NDArray[np.int64]  # (P, 2) row numbers. k equal images make k - 1 pairs, each with the first


def perceptual_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the difference hash of images (N, S, S, 3): a bit is 1 if a cell is brighter than its right neighbour.

    Brightness is approximated by the green channel, which dominates luminance.
    """
    size = images.shape[1]
    starts = np.arange(CELLS) * size // CELLS
    sums = np.add.reduceat(np.add.reduceat(images[..., 1].astype(np.uint32), starts, axis=1), starts, axis=2)
    means = sums / np.diff([*starts, size])  # cells may differ in width by a pixel
    bits = means > np.roll(means, -1, axis=2)
    return np.packbits(bits.reshape(len(images), CELLS**2), axis=1).view(np.uint64).reshape(-1)


def find_equal(digests: NDArray[np.uint64]) -> Pairs:
    """Pair each row with the first row that has the same digest; (N, 2) or (N,)."""
    _, first, kind = np.unique(digests, axis=0 if digests.ndim > 1 else None, return_index=True, return_inverse=True)
    first_of_row, rows = first[kind.reshape(-1)], np.arange(len(digests))
    pairs: Pairs = np.stack([first_of_row, rows], axis=1)[first_of_row != rows]
    return pairs


def find_similar(looks: NDArray[np.uint64], images: NDArray[np.uint8], equal: Pairs) -> Pairs:
    """Pair rows that look nearly the same: equal perceptual hashes and close pixels.

    Args:
        looks: (N,) perceptual hashes.
        images: (N, S, S, 3) uint8.
        equal: Pairs of equal images, which are left out.
    """
    known = set(map(tuple, equal.tolist()))
    kept = [
        (a, b)
        for a, b in find_equal(looks).tolist()
        if (a, b) not in known and 0 < np.abs(images[a].astype(np.int16) - images[b]).mean() < MAX_MEAN_DIFFERENCE
    ]
    return np.array(kept, dtype=np.int64).reshape(-1, 2)
