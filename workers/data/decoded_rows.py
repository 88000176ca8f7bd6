"""Decode the images of a data set into a file of pixels, and collect what packing must know of its rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO

import numpy as np

from workers.config.specs import DataSpec
from workers.data.archives import read
from workers.data.decoding import decode_batches
from workers.data.duplicates import perceptual_hashes
from workers.data.images import (
    MAX_PIXELS,
    DecodedImage,
    Pixels,
    UnreadableImageError,
    common_depth,
    read_image,
    resize,
    to_eight_bits,
)
from workers.data.layout import Item, Layout
from workers.data.store import MOST_SHOWN
from workers.errors import UserInputError

CHUNK_BYTES, CHUNK_ROWS = 64 * 2**20, 2048  # limits on the pixels and rows decoded at once

OnProgress = Callable[[int, int | None], None]  # rows decoded, rows expected or None if unknown


@dataclass
class DecodedRows:
    """The rows of a data set, in the order of their pixels.

    Attributes:
        items: The rows.
        bad: A sentence for each image that cannot be decoded.
        bad_labels: The classes of these images.
        sizes: Width and height in pixels of each original image file.
        digests: Digest of each row's pixels, 16 bytes.
        looks: Perceptual hash of each row's pixels.
        deep: The number of each row of more than 8 bits, and the bits that it needs.
        several_pages: Number of files with more than one page or frame.
    """

    items: list[Item] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    bad_labels: set[str] = field(default_factory=set)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    looks: list[np.uint64] = field(default_factory=list)
    deep: dict[int, int] = field(default_factory=dict)
    several_pages: int = 0

    @property
    def labels(self) -> list[str]:
        """The class name of each row."""
        return [item.label for item in self.items]

    @property
    def ids(self) -> list[str]:
        """The id of each row."""
        return [item.id for item in self.items]

    @property
    def bits(self) -> int:
        """Depth by which all images of more than 8 bits are scaled; 8 if there are none."""
        return common_depth(list(self.deep.values())) if self.deep else 8

    def marked(self, part: str) -> list[bool]:
        """Return for each row whether the data set puts it into a part."""
        return [item.part == part for item in self.items]

    def notes(self) -> list[str]:
        """Return sentences on how the images were read."""
        notes = []
        if self.several_pages:
            notes.append(f"{_images_have(self.several_pages)} several pages or frames: only the first is used")
        if self.deep:
            rest = len(self.items) - len(self.deep)
            used = f", of which the data set uses {self.bits}: {(1 << self.bits) - 1:,} becomes 255" if self.bits < 16 else ""
            others = f". The other {rest:,} have 8 bits" if rest else ""
            notes.append(f"{_images_have(len(self.deep))} 16 bits a channel{used}{others}")
        return notes


def _images_have(count: int) -> str:
    return "1 image has" if count == 1 else f"{count:,} images have"


def rows_at_once(size: int) -> int:
    """Return how many images of a size in pixels to hold in memory."""
    return min(CHUNK_ROWS, max(1, CHUNK_BYTES // (size * size * 3)))


def decode_all(source: Layout, file: IO[bytes], deep_file: IO[bytes], on_progress: OnProgress) -> DecodedRows:
    """Decode all images in chunks, and append their pixels to a file.

    Args:
        source: The data set.
        file: Takes (size, size, 3) uint8 for each row; zeros for a row of more than 8 bits.
        deep_file: Takes (size, size, 3) uint16 for each row of more than 8 bits, for `scale_deep_rows`.
        on_progress: Called with the number of rows decoded so far.

    Raises:
        UserInputError: If more images are bad than data.max_bad allows.
    """
    rows, size = DecodedRows(), source.spec.size
    batches = decode_batches(partial(_decode, source.spec), source.items(), rows_at_once(size))
    with source.open_files, closing(batches):
        for batch in batches:
            for item, result in batch:
                if isinstance(result, str):
                    rows.bad.append(result)
                    rows.bad_labels.add(item.label)
            refuse_bad(rows.bad, source.spec)
            decoded = [(item, result) for item, result in batch if isinstance(result, DecodedImage)]
            pixels = np.zeros((len(decoded), size, size, 3), np.uint8)
            for i, (_, image) in enumerate(decoded):
                if image.pixels.dtype == np.uint8:
                    pixels[i] = image.pixels
                else:
                    deep_file.write(image.pixels.tobytes())
                    rows.deep[len(rows.items) + i] = image.bits
            file.write(pixels.data)
            rows.items += [replace(item, content=b"") for item, _ in decoded]
            rows.sizes += [(image.width, image.height) for _, image in decoded if image.width]
            rows.several_pages += sum(image.pages > 1 for _, image in decoded)
            rows.digests += [_digest(image) for image in pixels]
            rows.looks += list(perceptual_hashes(pixels))
            on_progress(len(rows.items), source.expected)
    return rows


def scale_deep_rows(rows: DecodedRows, images: Path, deep_file: Path) -> None:
    """Write the rows of more than 8 bits to a store's images, all scaled by one depth so that they stay comparable.

    Args:
        rows: The rows, whose digests and hashes are updated.
        images: The .npy file of pixels.
        deep_file: The file that `decode_all` wrote beside it.
    """
    if not rows.deep:
        return
    target = np.load(images, mmap_mode="r+")
    deep = np.memmap(deep_file, np.uint16, "r").reshape(-1, *target.shape[1:])
    for row, values in zip(rows.deep, deep, strict=True):
        target[row] = to_eight_bits(values, rows.bits)
        rows.digests[row] = _digest(target[row])
        rows.looks[row] = perceptual_hashes(target[row][None])[0]
    target.flush()


def _digest(pixels: Pixels) -> bytes:
    return blake2b(pixels.tobytes(), digest_size=16).digest()


def _decode(spec: DataSpec, item: Item) -> DecodedImage | str:
    """Return the decoded image, or an error message that names the image."""
    interpolation = spec.interpolation or "bilinear"
    if isinstance(item.content, np.ndarray):
        return DecodedImage(resize(item.content, spec.size, interpolation), 0, 0)
    try:
        return read_image(read(item.content), spec.size, spec.max_pixels or MAX_PIXELS, interpolation)
    except UnreadableImageError as error:
        name = item.content if isinstance(item.content, Path) else item.id
        return f"{name}: the image {error}"


def refuse_bad(bad: list[str], spec: DataSpec) -> None:
    """Raise UserInputError if more images are bad than data.max_bad allows."""
    if len(bad) > spec.max_bad:
        shown = "\n".join(f"{text}." for text in bad[:MOST_SHOWN])
        hint = (
            "Repair or remove it, or allow some with data.max_bad." if spec.max_bad == 0 else f"data.max_bad is {spec.max_bad}."
        )
        raise UserInputError(f"{shown} {hint}")
