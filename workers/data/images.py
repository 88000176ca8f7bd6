"""Decode one image file to a square uint8 RGB array. Training and `predict` share this. No torch."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"})
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # by content; no other of Pillow's, some of which start programs
MAX_PIXELS = 89_478_485  # Pillow's own warning level; here it is an error

Pixels = NDArray[np.uint8]


class UnreadableImageError(Exception):
    """One image can't be used; the text says why."""


def is_image(name: str) -> bool:
    """Return whether a file is an image by its extension."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def decode(content: bytes | Path, size: int) -> Pixels:
    """Decode an image fully to (size, size, 3) uint8: resize its shorter side to `size`, then cut out the centre.

    Args:
        content: The file's content, or its path.
        size: Side in pixels.

    Raises:
        UnreadableImageError: If the image cannot be used.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
            _check_size(image)
            image.draft("RGB", (size, size))  # JPEG only: decode at a fraction of the size where that suffices
            ImageOps.exif_transpose(image, in_place=True)
            return _square(_rgb(image), size)
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"has more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        raise UnreadableImageError(
            f"can't be decoded ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from None


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"is {width} x {height} pixels, more than {MAX_PIXELS:,}")


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB. 16 bits per channel keep their upper eight; 32 bits have no range that could be known."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnreadableImageError(f"has 32 bits a pixel (mode {image.mode}), whose range is not known; save it with 8 or 16")
    return image if image.mode == "RGB" else image.convert("RGB")


def _square(image: Image.Image, size: int) -> Pixels:
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        size_before_crop = max(size, round(width * scale)), max(size, round(height * scale))
        if size_before_crop[0] * size_before_crop[1] > MAX_PIXELS:
            raise UnreadableImageError(f"is {width} x {height} pixels: too long and thin for a shorter side of {size}")
        image = image.resize(size_before_crop, Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8)


def resize(pixels: Pixels, size: int) -> Pixels:
    """Resize (H, W, 3) uint8 to (size, size, 3), as `decode` would."""
    return pixels if pixels.shape[:2] == (size, size) else _square(Image.fromarray(pixels), size)
