"""Decode an image file to a square uint8 RGB array, for training and `predict`. Does not import torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
    | {".heic", ".heif", ".hif", ".avif"}
)
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF")  # by content; some other Pillow formats start programs
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_PIXELS = 89_478_485  # Pillow's own warning level; here it is an error
FULL_DEPTH = 13  # bits; a 16-bit image that uses fewer comes from a 10- or 12-bit camera
FULL_RANGE = 65535  # largest 16-bit value
MAX_SAMPLE_VALUE = 281  # the TIFF tag in which a file declares its largest value

Pixels = NDArray[np.uint8]

# First bytes of common files that are not images, and what to call them.
SIGNS = (
    (b"<!doctype html", "is an HTML page"),
    (b"<html", "is an HTML page"),
    (b"<svg", "is an SVG drawing"),
    (b"<?xml", "is an XML file"),
    (b"%pdf", "is a PDF document"),
    (b"pk\x03\x04", "is a ZIP archive"),
    (b"\x1f\x8b", "is a gzip archive"),
    (b"version https://git-lfs", "is a pointer to a file that Git LFS has not fetched"),
    (b"{", "is a JSON file"),
)


class UnreadableImageError(Exception):
    """An image can't be used; the message says why."""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image, ready for training.

    Attributes:
        pixels: (S, S, 3) uint8.
        width: Width of the original image in pixels.
        height: Height of the original image in pixels.
        note: Remark for the user on how the image was read; "" for none.
    """

    pixels: Pixels
    width: int
    height: int
    note: str = ""


def is_image(name: str) -> bool:
    """Return whether a file name has an image extension."""
    stem, dot, extension = name.rpartition(".")
    return bool(stem and dot) and f".{extension.lower()}" in EXTENSIONS


def decode(content: bytes | Path, size: int) -> Pixels:
    """Decode an image fully to (size, size, 3) uint8, as `read_image` does. Raises UnreadableImageError."""
    return read_image(content, size).pixels


def read_image(content: bytes | Path, size: int) -> DecodedImage:
    """Decode an image fully: resize its shorter side to `size`, then crop the centre.

    Only the first frame of an animation is used.

    Args:
        content: The file's content, or its path.
        size: Side in pixels.

    Raises:
        UnreadableImageError: If the image cannot be used.
    """
    try:
        with _opened(content) as image:
            _check_size(image)
            width, height = image.size
            image.draft("RGB", (size, size))  # JPEG only: decode at a fraction of the size if that suffices
            ImageOps.exif_transpose(image, in_place=True)
            rgb, note = _rgb(image)
            return DecodedImage(_square(rgb, size), width, height, note)
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"has more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise UnreadableImageError(_what_it_is(content)) from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableImageError(f"can't be decoded ({why})") from None


def _opened(content: bytes | Path) -> Image.Image:
    """Open an image by its content, ignoring the file name."""
    formats: tuple[str, ...] = FORMATS
    if is_heif(_first_bytes(content)):
        _register_heif()
        formats = ("HEIF",)
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=formats)


def is_heif(beginning: bytes) -> bool:
    """Return whether the first bytes are those of a HEIF file (HEIC on phones)."""
    return beginning[4:8] == b"ftyp" and beginning[8:12] in HEIF_BRANDS


@cache
def _register_heif() -> None:
    from pi_heif import register_heif_opener

    register_heif_opener()


def _first_bytes(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:64]
    with open(content, "rb") as file:
        return file.read(64)


def _what_it_is(content: bytes | Path) -> str:
    """Describe a file that is not an image by its first bytes."""
    beginning = _first_bytes(content)
    if not beginning:
        return "is empty"
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    what = next((what for sign, what in SIGNS if text.startswith(sign)), "is of no image format that is known here")
    return f"can't be decoded: the file {what}"


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"is {width} x {height} pixels, more than {MAX_PIXELS:,}")


def _rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """Convert to RGB. Return the image and a note, which is "" if the conversion is obvious."""
    note = ""
    if image.mode.startswith("I"):
        image, note = _to_eight_bits(image)
    if image.mode == "F":
        raise UnreadableImageError("has floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    return (image if image.mode == "RGB" else image.convert("RGB")), note


def _to_eight_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """Scale integer pixels of more than 8 bits by the bit depth that the file declares, or else by the bits in use."""
    values = np.asarray(image).astype(np.int64)
    lowest, largest = int(values.min()), int(values.max())
    if lowest < 0 or largest > FULL_RANGE:
        raise UnreadableImageError(f"has values from {lowest} to {largest}, outside the 16-bit range; save it with 8 or 16 bits")
    declared = _declared_maximum(image)
    depth = (declared or largest).bit_length()
    if depth >= FULL_DEPTH:
        return Image.fromarray((values >> 8).astype(np.uint8)), ""
    top = max(declared or (1 << max(depth, 8)) - 1, largest)
    by = "declares" if declared else "uses"
    note = f"of 16 bits a pixel, of which it {by} {depth}: its values are divided by {top}"
    return Image.fromarray((values * 255 // top).astype(np.uint8)), note


def _declared_maximum(image: Image.Image) -> int | None:
    """Return the largest sample value that the image file declares, or None."""
    if image.format == "PPM":
        return FULL_RANGE  # Pillow has already scaled the values to 16 bits
    value = getattr(image, "tag_v2", {}).get(MAX_SAMPLE_VALUE)
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if value and 255 <= int(value) <= FULL_RANGE else None


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
