"""Data sets -> one packed, memory-mapped uint8 store.

Packing is the preflight too: every image is decoded in full, into a temporary folder beside the home that is renamed
into place when everything passes and removed otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from workers.decoding import Decoding
from workers.errors import Rejected
from workers.images import Pixels, Unreadable, decode, resize
from workers.sources import Item, Source
from workers.spec import DataSpec

CHUNK = 2048
MIN_PER_CLASS = 3
SHOWN = 10

Rows = NDArray[np.int64]
Progress = Callable[[int, int | None], None]  # rows decoded, rows expected where that is known
Check = Callable[["Store"], object]


@dataclass(frozen=True)
class Store:
    """A packed data set: `images` (N, size, size, 3) uint8 and `labels` (N,) int64, both memory-mapped."""

    FILES = ("images.npy", "labels.npy", "tested.npy", "ids.json", "store.json")
    folder: Path

    @cached_property
    def meta(self) -> dict[str, object]:
        content = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))
        assert isinstance(content, dict)
        return content

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        return np.load(self.folder / "images.npy", mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]

    @cached_property
    def labels(self) -> Rows:
        return np.load(self.folder / "labels.npy", mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]

    @cached_property
    def tested(self) -> NDArray[np.bool_]:
        """(N,) bool: rows that the data set itself sets apart for testing."""
        return np.load(self.folder / "tested.npy", allow_pickle=False)  # type: ignore[no-any-return]

    @cached_property
    def ids(self) -> list[str]:
        """One id a row, unique across the data set."""
        return json.loads((self.folder / "ids.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    @property
    def classes(self) -> list[str]:
        return self.meta["classes"]  # type: ignore[return-value]

    @property
    def digest(self) -> str:
        return str(self.meta["digest"])

    @property
    def size(self) -> int:
        return int(self.meta["size"])  # type: ignore[call-overload,no-any-return]

    def notes(self) -> list[str]:
        """What people should know of it: files that were passed over."""
        skipped, bad = self.meta["skipped"], self.bad
        found = [f"{skipped:,} files are no images by their names; skipped"] if skipped else []
        return (
            found + [f"left out: {text}" for text in bad[:SHOWN]] + ([f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else [])
        )

    @property
    def bad(self) -> list[str]:
        """The images that could not be decoded, and why (at most `data.max_bad`)."""
        return self.meta["bad"]  # type: ignore[return-value]


def find(spec: DataSpec, home: Path) -> Store | None:
    """The packed store of this source in `home`, or None."""
    folder = home / "data" / Source(spec).key()
    return Store(folder) if (folder / "store.json").is_file() else None


def pack(
    spec: DataSpec,
    home: Path,
    progress: Progress = lambda rows, expected: None,
    check: Check = lambda store: None,
) -> Store:
    """Decode once: the store of this source, made if `home` has none.

    `check` may refuse the store before it is put in place. Raises Rejected and leaves no trace.
    """
    if store := find(spec, home):
        _refuse(store.bad, spec)
        check(store)
        return store
    base = _existing(home)
    source = Source(spec)
    with _lock(base / f".conclave-{source.key()}.lock"):
        if store := find(spec, home):
            check(store)
            return store
        for stale in base.glob(f".conclave-{source.key()}-*"):  # of a process that was killed: we hold its lock
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".conclave-{source.key()}-", dir=base))
        try:
            _write(source, work, progress)
            check(Store(work))
            key = source.key()  # a download gives the source its files only now
            target = home / "data" / key
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Store(target)


def _existing(path: Path) -> Path:
    """The nearest folder at or above `path` that exists and can be written to."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir() or not os.access(path, os.W_OK):
        raise Rejected(f"--home: {path} is not a folder that can be written to. Choose another --home.")
    return path


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held while packing, gone afterwards. It saves work only: what keeps the store whole is the rename."""
    with FileLock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _write(source: Source, work: Path, progress: Progress) -> None:
    size = source.spec.size
    labels: list[str] = []
    ids: list[str] = []
    tested: list[bool] = []
    bad: list[str] = []
    hasher = hashlib.sha256()
    expected = source.expected()
    with open(work / "raw", "wb") as raw, Decoding(partial(_pixels, size)) as decoding:
        items = source.items()
        while chunk := list(islice(items, CHUNK)):
            decoded = decoding.begin(chunk)()
            bad += [pixels for pixels in decoded if isinstance(pixels, str)]
            _refuse(bad, source.spec)
            chunk = [item for item, pixels in zip(chunk, decoded, strict=True) if not isinstance(pixels, str)]
            content = b"".join(pixels.tobytes() for pixels in decoded if not isinstance(pixels, str))
            raw.write(content)
            hasher.update(content)
            labels += [item.label for item in chunk]
            ids += [item.id for item in chunk]
            tested += [item.part == "test" for item in chunk]
            progress(len(ids), expected)
    classes = sorted(set(labels))
    mask = np.array(tested, dtype=bool)
    _check(source.spec, ids, np.array(labels), mask, classes)
    hasher.update(json.dumps([ids, labels, tested, classes]).encode())
    shape = (len(ids), size, size, 3)
    images = np.lib.format.open_memmap(work / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    images[:] = np.memmap(work / "raw", dtype=np.uint8, mode="r", shape=shape)
    images.flush()
    (work / "raw").unlink()
    index = {name: i for i, name in enumerate(classes)}
    np.save(work / "labels.npy", np.array([index[label] for label in labels], dtype=np.int64))
    np.save(work / "tested.npy", mask)
    (work / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    counts = {"size": size, "rows": len(ids), "skipped": source.skipped, "bad": bad}
    meta = {"classes": classes, "digest": hasher.hexdigest(), **counts}
    (work / "store.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _pixels(size: int, item: Item) -> Pixels | str:
    """The image, or which one can't be used and why."""
    if isinstance(item.content, np.ndarray):
        return resize(item.content, size)
    try:
        return decode(item.content, size)
    except Unreadable as error:
        name = item.content if isinstance(item.content, Path) else item.id
        return f"{name}: the image {error}"


def _refuse(bad: list[str], spec: DataSpec) -> None:
    """More bad images than the team allows."""
    if len(bad) > spec.max_bad:
        shown = "\n".join(f"{text}." for text in bad[:SHOWN])
        how = "Repair or remove it, or allow some with data.max_bad." if spec.max_bad == 0 else f"data.max_bad is {spec.max_bad}."
        raise Rejected(f"{shown} {how}")


def _check(spec: DataSpec, ids: list[str], labels: NDArray[np.str_], tested: NDArray[np.bool_], classes: list[str]) -> None:
    """Refuse what can't be split, trained on or fused."""
    where = f"data.root {spec.root}" if spec.root else f"data.dataset {spec.dataset}"
    if not ids:
        raise Rejected(f"{where}: no image found. Expected CLASS/IMAGE or train/CLASS/IMAGE.")
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise Rejected(f"{where}: {twice} is there twice. Remove one.")
    trained = Counter(labels[~tested].tolist())
    if len(classes) < 2:
        raise Rejected(f"{where}: only one class ({classes[0]}). A classifier needs at least two class folders.")
    for name in classes:
        if trained[name] < MIN_PER_CLASS:
            raise Rejected(
                f"{where}: class {name!r} has {trained[name]} training images; at least {MIN_PER_CLASS} are needed to split them."
            )
