"""Find images that are there twice: equal ones by a digest, and nearly equal ones by a perceptual hash."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Twins:
    """Pairs of images that are there twice: (P,) row numbers each. An image that is there k times is in k - 1 pairs or more."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]


def find_equal(digests: NDArray[np.uint64]) -> Twins:
    """Return the pairs of rows with equal digests (N, 2): each row with the first one of its kind."""
    return _with_the_first(np.unique(digests, axis=0, return_inverse=True)[1].reshape(-1))


def find_similar(looks: NDArray[np.uint64], images: NDArray[np.uint8], equal: Twins) -> Twins:
    """Return the pairs of rows that look nearly the same: those of equal perceptual hashes whose pixels are close.

    Args:
        looks: (N,) perceptual hashes.
        images: (N, S, S, 3) uint8.
        equal: The pairs that are equal, which are left out.
    """
    pairs = _with_the_first(np.unique(looks, return_inverse=True)[1].reshape(-1))
    known = set(zip(equal.first.tolist(), equal.second.tolist(), strict=True))
    kept = [
        (a, b)
        for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
        if (a, b) not in known and 0 < np.abs(images[a].astype(np.int16) - images[b]).mean() < NEARLY
    ]
    first, second = np.array(kept, dtype=np.int64).reshape(-1, 2).T
    return Twins(first, second)


def _with_the_first(kinds: NDArray[np.int64]) -> Twins:
    """Return each row that has a kind which an earlier row has too, with the first row of that kind."""
    first_of = np.full(int(kinds.max(initial=-1)) + 1, len(kinds), dtype=np.int64)
    np.minimum.at(first_of, kinds, np.arange(len(kinds)))
    rows = np.flatnonzero(first_of[kinds] != np.arange(len(kinds)))
    return Twins(first_of[kinds[rows]], rows)
