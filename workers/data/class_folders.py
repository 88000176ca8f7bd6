"""Read images in one folder per class, from a folder or an archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from workers.data.archives import walk
from workers.data.images import is_image
from workers.data.layout import Item
from workers.errors import UserInputError

MAC_FOLDER = "__MACOSX"  # what macOS adds to an archive: a shadow of each file, under the same name
PARTS = {"train": "train", "val": "val", "test": "test"}


def class_folders(root: Path, count_skipped: Callable[[int], None]) -> Iterator[Item]:
    """Yield images in one folder per class. `val/` stands in for a missing `test/`, and is left out otherwise."""
    validation: list[Item] = []
    first: PurePosixPath | None = None
    prefix: PurePosixPath | None = None
    has_test = False
    for name, content in walk(root):
        path = PurePosixPath(name)
        if not is_image(name) or path.parts[0] == MAC_FOLDER:
            count_skipped(1)
            continue
        if first is None:
            first, prefix = path, _prefix(path)
        if prefix and not path.is_relative_to(prefix):
            raise UserInputError(
                f"{root}: {name} is not in {prefix}/, as {first} is: is {prefix} a class, or a folder around all classes? "
                "Expected CLASS/IMAGE or train/CLASS/IMAGE."
            )
        inner = path.relative_to(prefix) if prefix else path
        if len(inner.parts) < 2:
            raise UserInputError(f"{root}: {name} is in no class folder. Expected CLASS/IMAGE or train/CLASS/IMAGE.")
        part = PARTS.get(inner.parts[0], "") if len(inner.parts) > 2 else ""
        label = inner.parts[1] if part else inner.parts[0]
        item = Item(inner.as_posix(), label, part, content)
        has_test = has_test or part == "test"
        if part == "val":
            validation.append(item)  # only the whole walk tells whether there is a test/
        else:
            yield item
    if has_test:
        count_skipped(len(validation))
        return
    yield from (Item(i.id, i.label, "test", i.content) for i in validation)


def _prefix(path: PurePosixPath) -> PurePosixPath | None:
    """Return the folder that an archive wraps around everything, if the first file shows one (x/train/cat/1.jpg)."""
    for depth, part in enumerate(path.parts[:-2]):
        if part in PARTS and depth:
            return PurePosixPath(*path.parts[:depth])
    return PurePosixPath(path.parts[0]) if len(path.parts) == 3 and path.parts[0] not in PARTS else None


def count_images(root: Path) -> int | None:
    """Return the number of images in a folder, or None for an archive, which would have to be read whole."""
    return sum(is_image(name) for name, _ in walk(root)) if root.is_dir() else None
