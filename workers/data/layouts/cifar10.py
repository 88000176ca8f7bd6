"""CIFAR-10, as torchvision loads it or as images in class folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from workers.config.extensions import LAYOUTS
from workers.data.archives import has_archive_name
from workers.data.class_folders import items_of_classes
from workers.data.layout import Item, Layout
from workers.errors import UserInputError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

ARCHIVE = "cifar-10-python.tar.gz"
BATCH_ROWS = 10_000  # images in each of its six files


@LAYOUTS.register
class Cifar10(Layout):
    """CIFAR-10 (Krizhevsky 2009): 60,000 color images of 32x32 pixels; downloaded if missing."""

    default_size, needs_root = 32, False

    def missing(self, root: Path) -> Path:
        """Return the folder to download to."""
        return super().missing(root) if has_archive_name(root) else root

    def items(self) -> Iterator[Item]:
        """Yield every image."""
        root = self.root()
        if (root / "train").is_dir() or (root.is_file() and root.name != ARCHIVE):
            yield from items_of_classes(self)
            return
        self.expected = 60_000
        for part in ("train", "test"):
            data = _load(root.parent if root.is_file() else root, part == "train")
            for row, (image, label) in enumerate(zip(data.data, data.targets, strict=True)):
                batch = f"data_batch_{1 + row // BATCH_ROWS}" if data.train else "test_batch"
                yield Item(f"{batch}/{row % BATCH_ROWS:05d}", data.classes[label], part, image.copy())


def _load(folder: Path, is_train: bool) -> CIFAR10:
    """Load a part of CIFAR-10, downloaded and unpacked into a folder if it is not there. Checksums are checked first."""
    from torchvision.datasets import CIFAR10

    try:
        return CIFAR10(str(folder), train=is_train, download=True)
    except Exception as error:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise UserInputError(
            f"CIFAR-10 is not complete at {folder} and can't be downloaded here ({type(error).__name__}). Put torchvision's "
            f"{CIFAR10.base_folder}/ or {ARCHIVE} there, or pass --data PATH of train/CLASS/IMAGE files."
        ) from None
