"""The interface of a data set layout: a stream of labelled images, still encoded."""

from __future__ import annotations

import contextlib
import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from workers.config.specs import DataSpec
from workers.data.archives import SUFFIXES, Content, is_archive, walk
from workers.data.images import Pixels
from workers.data.leftovers import SkippedFiles
from workers.errors import UserInputError

PARTS = {  # names of folders and splits, and the part that each stands for
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
}


@dataclass(frozen=True)
class Item:
    """One row before decoding.

    Attributes:
        id: Unique name of the row.
        label: Class name.
        part: "train", "val", "test", or "" if the data set has no parts. "val" rows become *fuse* rows.
        content: The encoded image, its path, or its pixels (H, W, 3) uint8.
        group: Group that no split may divide, such as a patient; "" if the data set has no groups.
        fold: Fold that the data set gives the row, or None.
        weight: Weight of its loss in training, relative to other rows.
    """

    id: str
    label: str
    part: str
    content: bytes | Content | Pixels
    group: str = ""
    fold: int | None = None
    weight: float = 1.0


class Layout(ABC):
    """Base class of data set layouts: one class per module of `workers/data/layouts/`.

    Subclasses are registered with `@LAYOUTS.register`.

    Class attributes:
        default_size: Default side of the images in pixels.
        needs_root: Whether a team file must set data.root.
        is_on_disk: Whether the images are read from data.root.

    Attributes:
        open_files: Files that must stay open until the items are decoded. The caller of `items` closes them.
        scratch: Folder for temporary files; None for the system's temporary folder.
        expected: Number of rows, or None until it is known; set by `items`.
        skipped: Skipped files, complete once `items` is exhausted.
        notes: Sentences on how the data set was read, complete once `items` is exhausted.
        origins: Origin of the rows of each part, complete once `items` is exhausted.

    Args:
        spec: The data set.
    """

    default_size: ClassVar[int] = 64
    needs_root: ClassVar[bool] = True
    is_on_disk: ClassVar[bool] = True

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.open_files = contextlib.ExitStack()
        self.scratch: Path | None = None
        self.expected: int | None = None
        self.skipped = SkippedFiles()
        self.notes: list[str] = []
        self.origins: dict[str, str] = {}

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Yield every row. Raises UserInputError if the source cannot be read in this layout."""

    def root(self) -> Path:
        """Return the folder or the archive of the images. Raises UserInputError if it does not exist."""
        root = self.spec.root or Path("data").resolve()
        if root.is_dir() or (root.is_file() and is_archive(root)):
            return root
        if root.is_file():
            raise UserInputError(f"data.root: {root} is neither a folder nor an archive ({', '.join(SUFFIXES)}).")
        return self.missing(root)

    def missing(self, root: Path) -> Path:
        """Return the path at which to create a missing root. Raises UserInputError if the layout cannot create it."""
        raise UserInputError(f"data.root: {root} is not there. Set data.root in the team file, or pass --data PATH.")

    def placed(self, items: Sequence[Item], origins: Mapping[str, str]) -> Iterator[Item]:
        """Yield items in their final part, and set `expected` and `origins`.

        The data set's own validation rows become test rows if there are no others, *fuse* rows if the team file says so, and are
        left out otherwise. A note says which.

        Args:
            items: The items, with the parts that the data set gives them.
            origins: Origin of each of these parts in words.
        """
        becomes = {part: part for part in ("", *origins)}
        if "val" in origins and "test" not in origins:
            becomes["val"] = "test"
            self.notes.append(f"{origins['val']} stands in for the test rows, because there is no other test part")
        elif "val" in origins and self.spec.validation != "fuse":
            del becomes["val"]
            self.notes.append(f"{origins['val']} is left out (a team file with `version: 2` fits the fusions on it)")
        kept = [item for item in items if item.part in becomes]
        if self.spec.images_per_class is not None:
            kept = thinned(kept, self.spec.images_per_class)
            self.notes.append(f"no more than {self.spec.images_per_class:,} images of a class and part are read")
        self.expected = len(kept)
        self.origins = {becomes[part]: origin for part, origin in origins.items() if part in becomes}
        yield from (replace(item, part=becomes[item.part]) for item in kept)

    def key(self) -> str:
        """Return a key of the source without reading its images: a hash of layout, path, file stats and image size."""
        parts = [self.spec.dataset, self.spec.size, *self.fingerprint()]
        if self.spec.validation == "fuse":  # newer settings count only if used, so that existing stores keep their key
            parts.append("val is fuse")
        if self.spec.duplicates == "drop":
            parts.append("without duplicates")
        if self.spec.interpolation == "bicubic":
            parts.append("bicubic")
        for name in ("encoding", "extension", "on_missing_label", "max_pixels", "images_per_class"):
            if value := getattr(self.spec, name):
                parts.append(f"{name} {value}")
        if self.spec.classes and self.spec.classes.is_file():
            parts.append(f"classes {self.spec.classes.read_bytes()!r}")
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def fingerprint(self) -> list[object]:
        """Return values that identify the source without reading its images: path, file names, sizes and times."""
        if not self.is_on_disk:
            return []
        root = self.root()
        files = [(root.name, root)] if root.is_file() else walk(root) if root.is_dir() else ()
        stats = ((name, os.stat(path)) for name, path in files)
        return [str(root), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)]


def thinned(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items of each class and part, evenly spaced, from as many groups as possible."""
    by_class: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        by_class.setdefault((item.part, item.label), []).append(index)
    kept: set[int] = set()
    for indices in by_class.values():
        seen: Counter[str] = Counter()
        turns: list[list[int]] = []  # the first image of every group, then the second of every group that has one, ...
        for index in indices:
            turn = seen[items[index].group] if items[index].group else 0
            seen[items[index].group] += 1
            turns.extend([] for _ in range(turn + 1 - len(turns)))
            turns[turn].append(index)
        wanted = most
        for turn_of in turns:
            count = min(wanted, len(turn_of))
            kept.update(turn_of[i * len(turn_of) // count] for i in range(count))
            wanted -= count
    return [item for index, item in enumerate(items) if index in kept]
