"""Read the data sets that a team can name as a stream of labelled images, still encoded. No torch unless it downloads."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from workers.config.specs import DataSpec
from workers.data.archives import Entry, is_archive, walk
from workers.data.images import Pixels, is_image
from workers.errors import UserInputError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_FOLDER = "cifar-10-batches-py"
MAC_FOLDER = "__MACOSX"  # what macOS adds to an archive: a shadow of each file, under the same name
PARTS = {"train": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class Item:
    """One row before decoding.

    Attributes:
        id: Unique name of the row.
        label: Class name.
        part: "train", "test", or "" where the data set has no parts.
        content: The encoded image, its path, or its pixels (H, W, 3) uint8.
    """

    id: str
    label: str
    part: str
    content: bytes | Path | Pixels


@dataclass
class Source:
    """Where images come from. After the walk, `skipped` is the number of files without an image's extension."""

    spec: DataSpec
    skipped: int = field(default=0)

    def key(self) -> str:
        """Return a name of the source without reading it whole: a hash of its kind, place, sizes, times and image size."""
        parts: list[Any] = [self.spec.dataset, self.spec.size]
        if self.spec.dataset != "digits":
            root = self._root()
            parts += [str(root), *_fingerprint(root)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def expected(self) -> int | None:
        """Return how many rows there will be, or None where only reading a whole archive would tell."""
        if self.spec.dataset == "digits":
            return 1797
        root = self._root()
        if self.spec.dataset == "cifar10" and not (root / "train").is_dir():
            return 60_000
        return sum(is_image(name) for name, _ in walk(root)) if root.is_dir() else None

    def items(self) -> Iterator[Item]:
        """Yield every row. Raises UserInputError where the source has no layout that is known."""
        if self.spec.dataset == "digits":
            yield from _digits()
        elif self.spec.dataset == "cifar10":
            yield from self._cifar10()
        else:
            yield from self._folder(self._root())

    def _root(self) -> Path:
        root = self.spec.root or Path("data").resolve()
        if root.is_dir() or (root.is_file() and is_archive(root)):
            return root
        if root.is_file():
            raise UserInputError(f"data.root: {root} is neither a folder nor a .tar, .tar.gz, .tar.xz or .zip.")
        if self.spec.dataset == "cifar10" and not is_archive(root):
            return root  # it may be downloaded to there
        raise UserInputError(f"data.root: {root} is not there. Set data.root in the team file, or pass --data PATH.")

    def _cifar10(self) -> Iterator[Item]:
        root = self._root()
        if root.is_dir() and (root / CIFAR10_FOLDER).is_dir():
            yield from _cifar_batches(walk(root / CIFAR10_FOLDER))
        elif root.is_dir() and (root / "cifar-10-python.tar.gz").is_file():
            yield from _cifar_batches(walk(root / "cifar-10-python.tar.gz"))
        elif root.is_file() and _holds_batches(root):
            yield from _cifar_batches(walk(root))
        elif root.exists() and (root.is_file() or (root / "train").is_dir()):
            yield from self._folder(root)
        else:
            yield from _cifar_batches(walk(_download(root)))

    def _folder(self, root: Path) -> Iterator[Item]:
        """Yield images in one folder per class. `val/` stands in for a missing `test/`, and is left out otherwise."""
        validation: list[Item] = []
        first: PurePosixPath | None = None
        prefix: PurePosixPath | None = None
        has_test = False
        for name, content in walk(root):
            path = PurePosixPath(name)
            if not is_image(name) or path.parts[0] == MAC_FOLDER:
                self.skipped += 1
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
            self.skipped += len(validation)
            return
        yield from (Item(i.id, i.label, "test", i.content) for i in validation)


def _prefix(path: PurePosixPath) -> PurePosixPath | None:
    """Return the folder that an archive wraps around everything, if the first file shows one (x/train/cat/1.jpg)."""
    for depth, part in enumerate(path.parts[:-2]):
        if part in PARTS and depth:
            return PurePosixPath(*path.parts[:depth])
    return PurePosixPath(path.parts[0]) if len(path.parts) == 3 and path.parts[0] not in PARTS else None


def _fingerprint(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (name, size, mtime in ns) of the archive, or of every file in the folder."""
    if root.is_file():
        stat = root.stat()
        yield root.name, stat.st_size, stat.st_mtime_ns
    elif root.is_dir():
        for name, path in walk(root):
            stat = os.stat(path)
            yield name, stat.st_size, stat.st_mtime_ns


def _digits() -> Iterator[Item]:
    """Yield scikit-learn's digits (Alpaydin and Kaynak 1998): 1,797 grey 8x8 images with values from 0 to 16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.repeat(np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None], 3, axis=-1)
    for row, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        yield Item(f"digits/{row:04d}", str(label), "", image)


class _Arrays(pickle.Unpickler):
    """Reads torchvision's CIFAR files, which are pickles, and nothing but arrays, lists and strings from them."""

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
        """Return one of the few allowed classes. Raises UserInputError for any other."""
        if (module, name) not in self.ALLOWED:
            raise UserInputError(f"a CIFAR-10 file asks to load {module}.{name}: it is not what torchvision ships.")
        return super().find_class(module, name)


def _holds_batches(archive: Path) -> bool:
    try:
        with tarfile.open(archive) as tar:
            first = tar.next()
            return first is not None and first.name.startswith(CIFAR10_FOLDER)
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        return False  # whoever walks it says what is wrong with it


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
