"""What a layout of a data set is: a stream of labelled images, still encoded, from wherever they lie."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from workers.config.specs import DataSpec
from workers.data.archives import Content, is_archive, walk
from workers.data.images import Pixels
from workers.data.leftovers import SkippedFiles
from workers.errors import UserInputError


@dataclass(frozen=True)
class Item:
    """One row before decoding.

    Attributes:
        id: Unique name of the row.
        label: Class name.
        part: "train", "val", "test", or "" where the data set has no parts. "val" rows become *fuse* rows.
        content: The encoded image, its path, or its pixels (H, W, 3) uint8.
        group: What must not be on two sides of a split, such as a patient; "" where the data set has no groups.
        fold: The fold that the data set itself gives the row; None where it gives none.
        weight: How much its loss counts in training, beside those of the other rows.
    """

    id: str
    label: str
    part: str
    content: bytes | Content | Pixels
    group: str = ""
    fold: int | None = None
    weight: float = 1.0


class Layout(ABC):
    """A layout of a data set: one module of `workers/data/layouts/` with one class, registered by `@LAYOUTS.register`.

    Class attributes:
        default_size: Side of the images in pixels, where a team file gives none.
        needs_root: Whether a team file has to say where the images are.
        is_on_disk: Whether the images are read from data.root.

    Attributes:
        open_files: What has to stay open until the items were decoded. Whoever walks the items closes it.
        scratch: Folder for temporary files; None for the system's own.
        skipped: After the walk, the files that were passed over.
        notes: After the walk, sentences on how the data set was read.
        origins: After the walk, where the rows of each part came from.

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
        self.skipped = SkippedFiles()
        self.notes: list[str] = []
        self.origins: dict[str, str] = {}

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Yield every row. Raises UserInputError where the source has no layout that is known."""

    def expected(self) -> int | None:
        """Return how many rows there will be, or None where only reading a whole archive would tell."""
        return None

    def root(self) -> Path:
        """Return the folder or the archive of the images. Raises UserInputError where there is none."""
        root = self.spec.root or Path("data").resolve()
        if root.is_dir() or (root.is_file() and is_archive(root)):
            return root
        if root.is_file():
            raise UserInputError(f"data.root: {root} is neither a folder nor a .tar, .tar.gz, .tar.xz or .zip.")
        return self.missing(root)

    def missing(self, root: Path) -> Path:
        """Return where a root that is not there is to be made. Raises UserInputError where that cannot be done."""
        raise UserInputError(f"data.root: {root} is not there. Set data.root in the team file, or pass --data PATH.")

    def place_validation(self, has_test: bool, what: str) -> str:
        """Say what becomes of the data set's own validation rows, and return the part that they belong to.

        Args:
            has_test: Whether the data set has test rows.
            what: What the rows are, for the note.

        Returns:
            "test" where there are no other test rows, "val" where fusions are fitted on them, and "" where they are left out.
        """
        if not has_test:
            self.notes.append(f"{what} stands in for the test rows, because there is no other test part")
            return "test"
        if self.spec.validation == "fuse":
            self.notes.append(f"{what} holds the fuse rows")
            return "val"
        self.notes.append(f"{what} is left out (a team file with `version: 2` fits the fusions on it)")
        return ""

    def fingerprint(self) -> list[object]:
        """Return what tells the source from others without reading it whole: its place, and its files' sizes and times."""
        if not self.is_on_disk:
            return []
        root = self.root()
        return [str(root), *_files(root)]


def _files(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (name, size, mtime in ns) of the archive, or of every file in the folder."""
    if root.is_file():
        stat = root.stat()
        yield root.name, stat.st_size, stat.st_mtime_ns
    elif root.is_dir():
        for name, path in walk(root):
            stat = os.stat(path)
            yield name, stat.st_size, stat.st_mtime_ns
