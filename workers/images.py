"""One image file -> a square uint8 RGB array. The same for training and for `predict`; no torch."""

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


class Unreadable(Exception):
    """This one image can't be used; the text says why."""


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def decode(content: bytes | Path, size: int) -> Pixels:
    """Decode fully to (size, size, 3) uint8: shorter side to `size`, then the centre. Raises Unreadable."""
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Unreadable(f"is {width} x {height} pixels, more than {MAX_PIXELS:,}")
            image.draft("RGB", (size, size))  # JPEG only: decode at a fraction of the size where that suffices
            ImageOps.exif_transpose(image, in_place=True)
            return _square(_rgb(image), size)
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"has more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        raise Unreadable(f"can't be decoded ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None


def _rgb(image: Image.Image) -> Image.Image:
    """Of 16 bits the upper eight; what has neither a colour nor 16 bits has no range that could be known."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unreadable(f"has 32 bits a pixel (mode {image.mode}), whose range is not known; save it with 8 or 16")
    return image if image.mode == "RGB" else image.convert("RGB")


def _square(image: Image.Image, size: int) -> Pixels:
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        to = max(size, round(width * scale)), max(size, round(height * scale))
        if to[0] * to[1] > MAX_PIXELS:
            raise Unreadable(f"is {width} x {height} pixels: too long and thin for a shorter side of {size}")
        image = image.resize(to, Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8)


def resize(pixels: Pixels, size: int) -> Pixels:
    """(H, W, 3) -> (size, size, 3), as `decode` would."""
    return pixels if pixels.shape[:2] == (size, size) else _square(Image.fromarray(pixels), size)
