"""CIFAR-10, as torchvision ships it or as images in class folders."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from workers.config.extensions import LAYOUTS
from workers.data.archives import Entry, is_archive, walk
from workers.data.class_folders import count_images, items_of_classes
from workers.data.layout import Item, Layout
from workers.errors import UserInputError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_FOLDER = "cifar-10-batches-py"


@LAYOUTS.register
class Cifar10(Layout):
    """CIFAR-10 (Krizhevsky 2009): 60,000 color images of 32x32 pixels; downloaded if missing."""

    default_size, needs_root = 32, False

    def expected(self) -> int | None:
        """Return the number of images."""
        root = self.root()
        return count_images(root) if (root / "train").is_dir() else 60_000

    def missing(self, root: Path) -> Path:
        """Return the folder to download to."""
        return super().missing(root) if is_archive(root) else root

    def items(self) -> Iterator[Item]:
        """Yield every image."""
        root = self.root()
        if root.is_dir() and (root / CIFAR10_FOLDER).is_dir():
            yield from _cifar_batches(walk(root / CIFAR10_FOLDER))
        elif root.is_dir() and (root / "cifar-10-python.tar.gz").is_file():
            yield from _cifar_batches(walk(root / "cifar-10-python.tar.gz"))
        elif root.is_file() and _holds_batches(root):
            yield from _cifar_batches(walk(root))
        elif root.exists() and (root.is_file() or (root / "train").is_dir()):
            yield from items_of_classes(self)
        else:
            yield from _cifar_batches(walk(_download(root)))


class _Arrays(pickle.Unpickler):
    """Unpickler for torchvision's CIFAR files that loads only arrays, lists and strings."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class. Raises UserInputError for any other class."""
        if (module, name) not in self.ALLOWED:
            raise UserInputError(f"a CIFAR-10 file asks to load {module}.{name}: it is not the file that torchvision ships.")
        return super().find_class(module, name)


def _holds_batches(archive: Path) -> bool:
    try:
        with tarfile.open(archive) as tar:
            first = tar.next()
            return first is not None and first.name.startswith(CIFAR10_FOLDER)
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        return False  # `walk` reports what is wrong with it


def _cifar_batches(entries: Iterator[Entry]) -> Iterator[Item]:
    count = 0
    for name, content in entries:
        stem = PurePosixPath(name).name
        if not (stem.startswith("data_batch_") or stem == "test_batch"):
            continue
        raw = content.read_bytes() if isinstance(content, Path) else bytes(content)
        try:
            batch = _Arrays(io.BytesIO(raw), encoding="latin1").load()
            images = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        except UserInputError:
            raise
        except Exception as error:
            raise UserInputError(f"{stem}: not a CIFAR-10 batch ({type(error).__name__}). Fetch it again.") from None
        part = "test" if stem == "test_batch" else "train"
        for row, (image, label) in enumerate(zip(images, batch["labels"], strict=True)):
            yield Item(f"{stem}/{row:05d}", CIFAR10_CLASSES[label], part, np.ascontiguousarray(image))
            count += 1
    if count == 0:
        raise UserInputError(f"no CIFAR-10 batch was found; expected {CIFAR10_FOLDER}/data_batch_1 and so on.")


def _download(root: Path) -> Path:
    from torchvision.datasets.utils import download_url

    try:
        download_url(CIFAR10_URL, str(root), md5=CIFAR10_MD5)
    except Exception as error:
        if root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        raise UserInputError(
            f"CIFAR-10 is not at {root} and can't be downloaded here ({type(error).__name__}). Put torchvision's "
            f"{CIFAR10_FOLDER}/ or cifar-10-python.tar.gz there, or pass --data PATH of train/CLASS/IMAGE files."
        ) from None
    return root / "cifar-10-python.tar.gz"
