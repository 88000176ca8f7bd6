"""The packed data set of a home: images and labels in memory-mapped files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from workers.config.extensions import LAYOUTS
from workers.config.specs import DataSpec, Interpolation
from workers.errors import CorruptFileError

MOST_SHOWN = 10

Rows = NDArray[np.int64]


class StoreRecord(BaseModel):
    """The content of store.json.

    Attributes:
        version: Version of this format.
        classes: Class names, sorted.
        digest: Digest of everything that affects the splits and the weights.
        size: Side of the images in pixels.
        rows: Number of rows.
        bits: Depth in bits of the images of more than 8 bits, all scaled by it; 8 if there are none.
        interpolation: How images were resized.
        skipped: Number of skipped files.
        bad: A sentence for each image that could not be decoded.
        notes: Sentences on how the data set was read.
        origins: Origin of the rows of each part ("train", "val" or "test"), in words.
        image_sizes: Width and height in pixels of the smallest, the median and the largest image by area; empty if the data set
            has no image files.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[1] = 1
    classes: list[str]
    digest: str
    size: int
    rows: int
    bits: int = 8
    interpolation: Interpolation = "bilinear"
    skipped: int = 0
    bad: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    origins: dict[str, str] = Field(default_factory=dict)
    image_sizes: list[tuple[int, int]] = Field(default_factory=list)


@dataclass(frozen=True)
class Store:
    """A packed data set of N rows in a folder.

    Each array raises CorruptFileError, naming the file, if the file cannot be read as one. `damaged_file` (store_checks.py)
    detects changed values.

    Attributes:
        folder: The folder that holds `FILES`.
    """

    FILES = ("rows.npz", "images.npy", "labels.npy", "tested.npy", "ids.json", "store.json")
    folder: Path

    @cached_property
    def record(self) -> StoreRecord:
        """The record of the packing. Raises CorruptFileError."""
        with _reading(self.folder / "store.json") as path:
            return StoreRecord.model_validate_json(path.read_bytes())

    @cached_property
    def row_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of rows.npz by name, each with an entry per image.

        `digests` (N, 2) uint64 has a digest of each row's pixels, and `looks` (N,) uint64 a perceptual hash, which is equal for
        images that look nearly the same. The others are properties of the store.
        """
        with _reading(self.folder / "rows.npz") as path, open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    @property
    def validation(self) -> NDArray[np.bool_]:
        """(N,) bool: whether the data set reserves the row for fitting fusions."""
        return self.row_arrays.get("validation", np.zeros(len(self.tested), dtype=bool))

    @property
    def groups(self) -> Rows | None:
        """(N,) int64: the group of each row, such as a patient, which no split may divide; None without groups."""
        return self.row_arrays.get("groups")

    @property
    def folds(self) -> Rows | None:
        """(N,) int64: the fold that the data set gives each row, -1 for rows without; None if no row has a fold."""
        return self.row_arrays.get("folds")

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """(N,) float64: the weight of each row's loss in training; None if all weights are equal."""
        return self.row_arrays.get("weights")

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """(N, size, size, 3) uint8, memory-mapped."""
        with _reading(self.folder / "images.npy") as path:
            return np.lib.format.open_memmap(path, mode="c")

    @cached_property
    def labels(self) -> Rows:
        """(N,) int64, memory-mapped: the index of each row's class."""
        with _reading(self.folder / "labels.npy") as path:
            return np.lib.format.open_memmap(path, mode="c")

    @cached_property
    def tested(self) -> NDArray[np.bool_]:
        """(N,) bool: whether the data set reserves the row for testing."""
        with _reading(self.folder / "tested.npy") as path, open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    @cached_property
    def ids(self) -> list[str]:
        """The unique id of each row."""
        with _reading(self.folder / "ids.json") as path:
            return TypeAdapter(list[str]).validate_json(path.read_bytes())

    @cached_property
    def contents(self) -> list[str]:
        """A digest of each row's pixels, hexadecimal. Equal images have equal ones."""
        return [f"{a:016x}{b:016x}" for a, b in self.row_arrays["digests"].tolist()]

    @cached_property
    def id_keys(self) -> Rows:
        """(N,) int64: a hash of each row's id."""
        digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in self.ids]
        return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)

    @property
    def content_keys(self) -> Rows:
        """(N,) int64: the beginning of each row's digest of pixels."""
        return self.row_arrays["digests"][:, 0].astype(np.uint64).view(np.int64)

    @cached_property
    def keys(self) -> Rows:
        """(N,) int64: a hash of each row's id and pixels, which stays when other rows are added or removed."""
        pairs = zip(self.ids, self.row_arrays["digests"], strict=True)
        digests = [hashlib.blake2b(name.encode() + content.tobytes(), digest_size=8).digest() for name, content in pairs]
        return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)

    @property
    def classes(self) -> list[str]:
        """The class names, sorted."""
        return self.record.classes

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of images, ids, labels, test and validation rows, classes, groups, folds and weights."""
        return self.record.digest

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.record.size

    def notes(self) -> list[str]:
        """Return notes for the user: how the data was read, and which files were left out."""
        bad = self.record.bad
        notes = [*self.record.notes, *(f"left out: {text}" for text in bad[:MOST_SHOWN])]
        return notes + ([f"and {len(bad) - MOST_SHOWN} more"] if len(bad) > MOST_SHOWN else [])


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Read a file of a store.

    Raises:
        CorruptFileError: If NumPy or JSON cannot read the file.
        FileNotFoundError: If the file is missing, which may be temporary on a network disk.
    """
    try:
        yield path
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:  # pydantic raises ValueErrors
        raise CorruptFileError(f"{path}: damaged. Remove {path.parent}, and the next sweep packs the data again.") from error


def content_digest(store: Store) -> str:
    """Compute the digest of everything in a store that affects splits and weights."""
    hasher = hashlib.sha256()
    for start in range(0, len(store.images), 4096):
        hasher.update(np.ascontiguousarray(store.images[start : start + 4096]).data)
    labels = [store.classes[label] for label in store.labels]
    hasher.update(json.dumps([store.ids, labels, store.tested.tolist(), store.classes]).encode())
    for name in ("validation", "groups", "folds", "weights"):
        if name in store.row_arrays:
            hasher.update(name.encode() + store.row_arrays[name].tobytes())
    return hasher.hexdigest()


def find_store(spec: DataSpec, home: Path) -> Store | None:
    """Return the packed data of a home, or None if it is not packed yet."""
    folder = home / "data" / LAYOUTS[spec.dataset](spec).key()
    return Store(folder) if (folder / "store.json").is_file() else None
