"""Small data sets of the kinds that people have, for tests."""

from __future__ import annotations

import base64
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.factories import snapshot
from workers.config.specs import DataSpec
from workers.data.packing import pack_data
from workers.data.store import Store
from workers.errors import UserInputError

# A picture of 24 x 16 pixels whose red grows to the right and whose green grows downwards, as a phone saves it.
HEIC = base64.b64decode("""
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERAAAEA
AQAAAAABoAABAAAAAAAAAFwAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmND
AQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAA
AAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAGAAAAAEAAAAQAAAAAf///9gAAAAC
////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAZG1kYXQAAABYKAGvEyGkbGj1IYs0ITKNy7x8j5WJwtquJJBWMHwl
sYs4DaRNDfv5KgRSed9AzkLNm1OGiyleJsFoOPbZNcT7XgqgqV2va+W2gMvB5f8Rl6AS8LS5NCFFXA==
""")


# A network of its own, `small:Small`, that trains and exports in a second.
NETWORK = """\
from torch import nn


class Small(nn.Sequential):
    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, num_classes))
"""


def picture(hue: int, seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of noise in which one colour is stronger."""
    pixels = np.random.default_rng([hue, seed]).integers(0, 80, (*size, 3)).astype(np.uint8)
    pixels[..., hue % 3] += 120
    return Image.fromarray(pixels)


def classes(root: Path, counts: Mapping[str, int], suffix: str = ".png") -> Path:
    """Folders of so many pictures each. Names may hold slashes. No two pictures are equal."""
    for hue, (name, count) in enumerate(counts.items()):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(hue, i).save(folder / f"{i:03d}{suffix}")
    return root


def saved(image: Image.Image, kind: str, **keys: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **keys)  # type: ignore[arg-type]
    return buffer.getvalue()


def flat(root: Path, count: int) -> Path:
    """A folder of pictures without class folders."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i, 1000 + i).save(root / f"{i:03d}.png")
    return root


def tar(root: Path, target: Path, prefix: str = "", mode: str = "w") -> Path:
    """All files below a folder in an archive, with a prefix before their names, as it stands."""
    with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
        for path in sorted(root.rglob("*.*")):
            info = archive.gettarinfo(path)
            info.name = prefix + path.relative_to(root).as_posix()
            with path.open("rb") as content:
                archive.addfile(info, content)
    return target


def macos_zip(root: Path, target: Path) -> Path:
    """All files below a folder as macOS packs them: with a shadow of each."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*.*")):
            name = path.relative_to(root)
            archive.write(path, name.as_posix())
            archive.writestr(f"__MACOSX/{name.parent.as_posix()}/._{name.name}", b"\0\5\26\7 resource fork")
    return target


def bursts(root: Path, subjects: int = 12, shots: int = 6) -> Path:
    """Nearly equal pictures of subjects, two classes in turn. Return the manifest, which says who is who."""
    lines = ["path,label,group"]
    for subject in range(subjects):
        label = "well" if subject % 2 else "ill"
        (root / label).mkdir(parents=True, exist_ok=True)
        base = np.random.default_rng(subject).integers(0, 250, (16, 16, 3)).astype(np.uint8)
        for shot in range(shots):
            noise = np.random.default_rng([subject, shot]).integers(0, 5, base.shape).astype(np.uint8)
            name = f"{label}/s{subject:02d}_{shot}.png"
            Image.fromarray(base + noise).save(root / name)
            lines.append(f"{name},{label},s{subject:02d}")
    return write_table(root / "manifest.csv", lines)


def write_table(path: Path, lines: Sequence[str]) -> Path:
    """A CSV file of these lines."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def spec(root: Path | None, **keys: object) -> DataSpec:
    given = {"dataset": "folder", "root": root, "image_size": 8, "folds": 2, "fuse_fraction": 0.2, **keys}
    return DataSpec.model_validate(given)


def pack(root: Path, **keys: object) -> Store:
    return pack_data(spec(root, **keys), root.parent / "home")


def refused(root: Path, **keys: object) -> str:
    """Why a data set is refused, with nothing written."""
    before = snapshot(root.parent)
    with pytest.raises(UserInputError) as refusal:
        pack(root, **keys)
    assert snapshot(root.parent) == before
    return str(refusal.value)
