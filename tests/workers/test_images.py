"""Images of more than 8 bits, of several pages, with large chunks and of many pixels are read right, or refused."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.inputs import classes, pack, saved
from workers.data.images import UnreadableImageError, decode, read_image
from workers.data.store import Store
from workers.errors import UserInputError

TWO = {"cat": 12, "dog": 12}


def wide_rgb(values: NDArray[np.uint16], kind: str) -> bytes:
    """Encode (H, W, 3) uint16 as a PNG or as an uncompressed TIFF, which Pillow can read and not write."""
    height, width, _ = values.shape
    if kind == "PNG":
        big_endian = values.astype(">u2")
        lines = b"".join(b"\0" + line.tobytes() for line in big_endian)
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(lines)),
            (b"IEND", b""),
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
        )
    content = values.astype("<u2").tobytes()
    beyond = 8 + len(content)
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, beyond), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(content)), (284, 3, 1, 1)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (
        b"II*\0" + struct.pack("<I", beyond + 6) + content + struct.pack("<HHH", 16, 16, 16)
        + struct.pack("<H", len(tags)) + entries + bytes(4)
    )  # fmt: skip


def gray16(values: NDArray[np.uint16], kind: str) -> bytes:
    return saved(Image.fromarray(values[..., 0]), kind)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("encode", [gray16, wide_rgb])
def test_an_image_of_sixteen_bits_of_which_a_camera_uses_twelve_is_bright(
    encode: Callable[[NDArray[np.uint16], str], bytes], kind: str
) -> None:
    ramp = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8, 1).repeat(3, 2)
    content = encode(ramp, kind)
    assert read_image(content, 8).bits == 12
    assert np.array_equal(decode(content, 8), ramp.astype(int) * 255 // 4095)


@pytest.mark.parametrize("encode", [gray16, wide_rgb])
def test_one_depth_holds_for_the_whole_data_set(encode: Callable[[NDArray[np.uint16], str], bytes], tmp_path: Path) -> None:
    """Scaled by its own maximum, an image of 4095 would become brighter than one of 4096."""
    root = tmp_path / "images"
    for name, value in (("dark", 1000), ("mid", 4095), ("light", 5000)):
        (root / name).mkdir(parents=True)
        for i in range(8):
            (root / name / f"{i}.png").write_bytes(encode(np.full((8, 8, 3), value + 40 * i, np.uint16), "PNG"))
    store = pack(root)
    mean = {name: store.images[np.asarray(store.labels) == store.classes.index(name)].mean() for name in store.classes}
    assert mean["dark"] < mean["mid"] < mean["light"]
    assert store.record.bits == 16
    assert (root / "mid" / "7.png").exists()
    assert sorted(store.folder.iterdir()) == sorted(store.folder / name for name in (*Store.FILES, "checks.json"))


def test_the_hashes_of_scaled_rows_are_those_of_their_pixels(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", TWO)
    values = np.random.default_rng(1).integers(0, 4096, (8, 8)).astype(np.uint16)
    for name in ("a.png", "b.png"):
        Image.fromarray(values).save(root / "cat" / name)
    store = pack(root)
    digests = store.row_arrays["digests"]
    a, b = (store.ids.index(f"cat/{name}") for name in ("a.png", "b.png"))
    assert (digests[a] == digests[b]).all()
    assert digests[a].tobytes() == blake2b(store.images[a].tobytes(), digest_size=16).digest()


def test_a_model_scales_an_image_by_the_depth_of_its_training_data() -> None:
    dim = gray16(np.full((8, 8, 1), 255, np.uint16), "PNG")
    assert (decode(dim, 8, bits=12).max(), decode(dim, 8, bits=16).max(), decode(dim, 8).max()) == (255 * 255 // 4095, 0, 255)


def test_a_declared_depth_counts_more_than_the_brightest_pixel() -> None:
    dark = np.full((8, 8), 100, ">u2")
    assert decode(b"P5 8 8 4095\n" + dark.tobytes(), 8).max() == 100 * 255 // 4095
    declared = saved(Image.fromarray(np.full((8, 8), 500, np.uint16)), "TIFF", tiffinfo={281: 1023})
    assert decode(declared, 8).max() == 500 * 255 // 1023


def test_the_screen_is_told_of_images_that_were_scaled(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", TWO)
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(2048, 4096, (8, 8)).astype(np.uint16)).save(
            root / "cat" / f"{i:03d}.png"
        )
    [note] = [note for note in pack(root).notes() if "16 bits" in note]
    assert note.startswith("3 images have 16 bits a channel, of which the data set uses 12: 4,095 becomes 255. The other")


def test_the_screen_is_told_of_pages_that_are_not_read(tmp_path: Path) -> None:
    root = classes(tmp_path / "images", TWO)
    pages = [Image.new("L", (8, 8), value) for value in (10, 20, 30)]
    for i in range(2):
        pages[0].save(root / "cat" / f"stack{i}.tif", save_all=True, append_images=pages[1:])
    assert "2 images have several pages or frames: only the first is used" in pack(root).notes()


@pytest.mark.parametrize("chunk", [b"zTXt", b"iCCP"])
def test_a_png_may_carry_a_large_text_or_colour_profile(chunk: bytes) -> None:
    raw = saved(Image.new("RGB", (8, 8), "red"), "PNG")
    data = b"name\0\0" + zlib.compress(bytes(2_000_000))
    piece = struct.pack(">I", len(data)) + chunk + data + struct.pack(">I", zlib.crc32(chunk + data))
    assert decode(raw[:33] + piece + raw[33:], 8)[0, 0].tolist() == [255, 0, 0]


def test_the_limit_on_pixels_can_be_raised_and_a_jpeg_above_it_is_decoded_smaller(tmp_path: Path) -> None:
    wide = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1)))
    assert decode(saved(wide.convert("RGB"), "JPEG"), 8, max_pixels=2500).shape == (8, 8, 3)
    with pytest.raises(UnreadableImageError, match=r"is 200 x 200 pixels, more than the limit of 2,500 \(max_pixels\)"):
        decode(saved(wide, "PNG"), 8, max_pixels=2500)
    root = classes(tmp_path / "images", TWO)
    wide.save(root / "cat" / "wide.png")
    with pytest.raises(UserInputError, match="200 x 200 pixels"):
        pack(root, max_pixels=2500)
    assert len(pack(root, max_pixels=40_000).ids) == sum(TWO.values()) + 1


def test_no_warning_of_pillow_reaches_the_screen(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)).quantize(8)
    image.save(tmp_path / "palette.png", transparency=bytes([0, 50, 100, 150, 200, 255, 255, 255]))
    Image.new("RGB", (12000, 12000)).save(tmp_path / "large.jpg")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0"
    Image.new("RGB", (8, 8)).save(tmp_path / "exif.jpg", exif=exif)
    code = (
        "import sys; from pathlib import Path; from workers.data.images import decode\nfor p in sys.argv[1:]: decode(Path(p), 8)"
    )
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    run = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"II*\0" + bytes(60), "is a TIFF of a kind that is not read; save it with 8 or 16 bits and 1, 3 or 4 channels"),
        (saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "has floating-point pixels"),
        (saved(Image.fromarray(np.full((4, 4), -5, np.int32)), "TIFF"), "has values from -5 to -5, outside the 16-bit range"),
    ],
)
def test_pixels_that_mean_nothing_known_are_refused(content: bytes, why: str) -> None:
    with pytest.raises(UnreadableImageError, match=re.escape(why)):
        decode(content, 4)
