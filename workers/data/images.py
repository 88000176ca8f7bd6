"""Decode an image file to a square uint8 RGB array, for training and `predict`. Does not import torch."""

from __future__ import annotations

import io
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

if TYPE_CHECKING:
    from workers.config.specs import Interpolation

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
    | {".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k"}
)
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000")  # some other Pillow formats start programs
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_PIXELS = 89_478_485  # 268 MB decoded
FULL_DEPTH = 13  # bits; 16-bit images that use fewer come from a 10- or 12-bit camera
FULL_RANGE = 65535  # largest 16-bit value
MAX_SAMPLE_VALUE = 281  # the TIFF tag in which a file declares its largest value

Image.MAX_IMAGE_PIXELS = None  # `read_image` has its own limit, which a user can raise
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20  # bytes of text or colour profile, which are read and not used; Pillow allows 1 MiB
warnings.filterwarnings("ignore", module="PIL")  # what matters about a file is an error or a note here

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
    (b"ii*\0", "is a TIFF of a kind that is not read; save it with 8 or 16 bits and 1, 3 or 4 channels"),
    (b"mm\0*", "is a TIFF of a kind that is not read; save it with 8 or 16 bits and 1, 3 or 4 channels"),
)


class UnreadableImageError(Exception):
    """An image can't be used; the message says why."""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image.

    Attributes:
        pixels: (S, S, 3) uint8; or uint16, the values of a file with more than 8 bits, for `to_eight_bits`.
        width: Width of the original image in pixels.
        height: Height of the original image in pixels.
        bits: Bits that the values of a file with more than 8 bits need, or that it declares; 8 for all other files.
        pages: Number of pages or frames in the file, of which the first is used.
    """

    pixels: Pixels | NDArray[np.uint16]
    width: int
    height: int
    bits: int = 8
    pages: int = 1


def is_image(name: str) -> bool:
    """Return whether a file name has an image extension."""
    stem, dot, extension = name.rpartition(".")
    return bool(stem and dot) and f".{extension.lower()}" in EXTENSIONS


def decode(
    content: bytes | Path,
    size: int,
    bits: int | None = None,
    max_pixels: int = MAX_PIXELS,
    interpolation: Interpolation = "bilinear",
) -> Pixels:
    """Decode an image fully to (size, size, 3) uint8, as for training.

    Args:
        content: The file's content, or its path.
        size: Side in pixels.
        bits: Depth of the training images that had more than 8 bits; None if there were none, and an image of more than 8 bits
            is scaled by the bits that it uses.
        max_pixels: Largest number of pixels to decode.
        interpolation: How the image is resized.

    Raises:
        UnreadableImageError: If the image cannot be used.
    """
    image = read_image(content, size, max_pixels, interpolation)
    return to_eight_bits(image.pixels, bits or common_depth([image.bits]))


def to_eight_bits(pixels: Pixels | NDArray[np.uint16], bits: int) -> Pixels:
    """Scale uint16 values of `bits` bits to 8 bits. Larger values become 255. Return uint8 as it is."""
    if pixels.dtype == np.uint8 or bits == 8:
        return np.minimum(pixels, 255).astype(np.uint8, copy=False)
    if bits == 16:
        return (pixels >> 8).astype(np.uint8)
    top = (1 << bits) - 1
    return (np.minimum(pixels, top).astype(np.uint32) * 255 // top).astype(np.uint8)


def common_depth(bits: list[int]) -> int:
    """Return the depth in bits by which to scale images that need these bits: 16, unless all fit into 12 or fewer."""
    return 16 if max(bits) >= FULL_DEPTH else max(8, *bits)


def read_image(
    content: bytes | Path, size: int, max_pixels: int = MAX_PIXELS, interpolation: Interpolation = "bilinear"
) -> DecodedImage:
    """Decode an image fully: resize its shorter side to `size`, then crop the centre. Only the first page or frame is used.

    Args:
        content: The file's content, or its path.
        size: Side in pixels.
        max_pixels: Largest number of pixels to decode. A JPEG can be larger if a fraction of its size suffices.
        interpolation: How the image is resized.

    Raises:
        UnreadableImageError: If the image cannot be used.
    """
    try:
        with _opened(content) as image:
            width, height = image.size
            image.draft("RGB", (size, size))  # JPEG only: decode at a fraction of the size if that suffices
            _check_size(image, width, height, max_pixels)
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # the rest of an MPO are previews
            values, bits = _values(image, content)
            if values is None:
                ImageOps.exif_transpose(image, in_place=True)
                rgb = image if image.mode == "RGB" else image.convert("RGB")
                return DecodedImage(np.asarray(_square(rgb, size, interpolation), np.uint8), width, height, pages=pages)
            channels = [
                np.asarray(_square(Image.fromarray(channel), size, interpolation)) for channel in values.astype(np.float32)
            ]
            stacked = np.stack(channels * (3 // len(channels)), -1).clip(0, FULL_RANGE)  # bicubic values overshoot
            pixels = np.rint(stacked).astype(np.uint16)
            return DecodedImage(pixels, width, height, bits, pages)
    except UnreadableImageError:
        raise
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


def _check_size(image: Image.Image, width: int, height: int, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise UnreadableImageError(f"is {width} x {height} pixels, more than the limit of {max_pixels:,} (max_pixels)")


def _values(image: Image.Image, content: bytes | Path) -> tuple[NDArray[Any] | None, int]:
    """Return the values (1 or 3, H, W) of an upright image of more than 8 bits, and their depth; (None, 8) for other images.

    Raises:
        UnreadableImageError: If the values are floats, or outside the 16-bit range.
    """
    if image.mode == "F":
        raise UnreadableImageError("has floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        ImageOps.exif_transpose(image, in_place=True)
        values = np.asarray(image)[None]
    elif low_bytes := _with_low_bytes(image, content):
        with low_bytes:
            high, low = (np.asarray(ImageOps.exif_transpose(half))[..., :3].astype(np.int64) for half in (image, low_bytes))
        values = np.moveaxis(high << 8 | low, -1, 0)
    else:
        return None, 8
    lowest, largest = int(values.min()), int(values.max())
    if lowest < 0 or largest > FULL_RANGE:
        raise UnreadableImageError(f"has values from {lowest} to {largest}, outside the 16-bit range; save it with 8 or 16 bits")
    return values, max(largest, _declared_maximum(image) or 0).bit_length()


def _with_low_bytes(image: Image.Image, content: bytes | Path) -> Image.Image | None:
    """Open a colour image of 16 bits a channel once more, so that it decodes to the low bytes; None for other images.

    Pillow keeps the high byte of each channel. Told the wrong byte order, it keeps the low one.
    """
    swapped = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    tiles = []
    for tile in getattr(image, "tile", ()):
        rawmode, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        mode, _, depth = str(rawmode).partition(";16")
        if mode not in ("RGB", "RGBA", "RGBX") or depth not in swapped:
            return None
        other = f"{mode};16{swapped[depth]}"
        tiles.append(tile._replace(args=(other, *others) if isinstance(tile.args, tuple) else other))
    if not tiles:
        return None
    again = _opened(content)
    again.tile = tiles  # type: ignore[attr-defined]
    return again


def _declared_maximum(image: Image.Image) -> int | None:
    """Return the largest sample value that the image file declares, or None."""
    if image.format == "PPM":
        return FULL_RANGE  # Pillow has already scaled the values to 16 bits
    value = getattr(image, "tag_v2", {}).get(MAX_SAMPLE_VALUE)
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if value and 255 <= int(value) <= FULL_RANGE else None


def _square(image: Image.Image, size: int, interpolation: Interpolation) -> Image.Image:
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        size_before_crop = max(size, round(width * scale)), max(size, round(height * scale))
        if size_before_crop[0] * size_before_crop[1] > MAX_PIXELS:
            raise UnreadableImageError(f"is {width} x {height} pixels: too long and thin for a shorter side of {size}")
        image = image.resize(size_before_crop, Image.Resampling[interpolation.upper()])
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return image


def resize(pixels: Pixels, size: int, interpolation: Interpolation = "bilinear") -> Pixels:
    """Resize (H, W, 3) uint8 to (size, size, 3), as `decode` would."""
    return pixels if pixels.shape[:2] == (size, size) else np.asarray(_square(Image.fromarray(pixels), size, interpolation))
