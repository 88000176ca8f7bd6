"""The packed data set of a home: images and labels in memory-mapped files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.config.specs import DataSpec
from workers.data.sources import source_key

MOST_SHOWN = 10

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Store:
    """A packed data set of N rows in a folder.

    Attributes:
        folder: The folder that holds `FILES`.
    """

    FILES = ("images.npy", "labels.npy", "tested.npy", "ids.json", "store.json")
    folder: Path

    @cached_property
    def meta(self) -> dict[str, object]:
        """The record of the packing: classes, digest, size, counts."""
        content = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))
        assert isinstance(content, dict)
        return content

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """(N, size, size, 3) uint8, memory-mapped."""
        return np.load(self.folder / "images.npy", mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]

    @cached_property
    def labels(self) -> Rows:
        """(N,) int64, memory-mapped: the index of each row's class."""
        return np.load(self.folder / "labels.npy", mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]

    @cached_property
    def tested(self) -> NDArray[np.bool_]:
        """(N,) bool: whether the data set itself sets the row apart for testing."""
        return np.load(self.folder / "tested.npy", allow_pickle=False)  # type: ignore[no-any-return]

    @cached_property
    def ids(self) -> list[str]:
        """The unique id of each row."""
        return json.loads((self.folder / "ids.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    @property
    def classes(self) -> list[str]:
        """The class names, sorted."""
        return self.meta["classes"]  # type: ignore[return-value]

    @property
    def digest(self) -> str:
        """SHA-256 of images, ids, labels, test rows and classes, in hexadecimal digits."""
        return str(self.meta["digest"])

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.meta["size"])  # type: ignore[call-overload,no-any-return]

    @property
    def bad(self) -> list[str]:
        """A sentence for each image that could not be decoded, at most `data.max_bad`."""
        return self.meta["bad"]  # type: ignore[return-value]

    def notes(self) -> list[str]:
        """Return what people should know of the data: which files were passed over."""
        skipped = self.meta["skipped"]
        notes = [f"{skipped:,} files are no images by their names; skipped"] if skipped else []
        notes += [f"left out: {text}" for text in self.bad[:MOST_SHOWN]]
        return notes + ([f"and {len(self.bad) - MOST_SHOWN} more"] if len(self.bad) > MOST_SHOWN else [])


def find_store(spec: DataSpec, home: Path) -> Store | None:
    """Return the packed data of a home, or None where it is not packed yet."""
    folder = home / "data" / source_key(spec)
    return Store(folder) if (folder / "store.json").is_file() else None
