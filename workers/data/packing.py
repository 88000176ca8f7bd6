"""Pack a data set: decode every image in full, once, into one memory-mapped uint8 store.

Packing is the check of the data too. It writes to a temporary folder beside the home, which is renamed into place when everything
passes and removed otherwise.
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
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from workers.config.specs import DataSpec
from workers.data.decoding import Decoding
from workers.data.images import Pixels, UnreadableImageError, decode, resize
from workers.data.layout import Item, Layout
from workers.data.sources import source_key, source_of
from workers.data.store import MOST_SHOWN, Store, find_store
from workers.errors import UserInputError

CHUNK = 2048
MIN_PER_CLASS = 3

OnProgress = Callable[[int, int | None], None]  # rows decoded, rows expected where that is known
Check = Callable[[Store], object]


def pack_data(
    spec: DataSpec,
    home: Path,
    on_progress: OnProgress = lambda rows, expected: None,
    check: Check = lambda store: None,
) -> Store:
    """Return the packed data of a home, and pack it where that was not done yet.

    Args:
        spec: The data set.
        home: The home.
        on_progress: Is told how many rows are decoded.
        check: May refuse the store before it is put in place, by raising UserInputError.

    Raises:
        UserInputError: If the data cannot be used. Nothing is left on the disk then.
    """
    if store := find_store(spec, home):
        _refuse_bad(store.bad, spec)
        check(store)
        return store
    base = _existing_parent(home)
    source = source_of(spec)
    with _locked(base / f".conclave-{source_key(spec)}.lock"):
        if store := find_store(spec, home):
            check(store)
            return store
        for stale in base.glob(f".conclave-{source_key(spec)}-*"):  # of a process that was killed: we hold its lock
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".conclave-{source_key(spec)}-", dir=base))
        try:
            _write_store(source, work, on_progress)
            check(Store(work))
            key = source_key(spec)  # a download gives the source its files only now
            target = home / "data" / key
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Store(target)


def _existing_parent(path: Path) -> Path:
    """Return the nearest folder at or above `path` that exists. Raises UserInputError where it cannot be written to."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir() or not os.access(path, os.W_OK):
        raise UserInputError(f"--home: {path} is not a folder that can be written to. Choose another --home.")
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock while packing, and remove it afterwards. It only saves work: what keeps the store whole is the rename."""
    with FileLock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@dataclass
class _PackedRows:
    """The rows that were decoded so far."""

    labels: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    tested: list[bool] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def add(self, items: list[Item]) -> None:
        self.labels += [item.label for item in items]
        self.ids += [item.id for item in items]
        self.tested += [item.part == "test" for item in items]


def _write_store(source: Layout, work: Path, on_progress: OnProgress) -> None:
    size, rows, hasher = source.spec.size, _PackedRows(), hashlib.sha256()
    _decode_all(source, work / "raw", rows, hasher, on_progress)
    classes = sorted(set(rows.labels))
    _check_rows(source.spec, rows, classes)
    hasher.update(json.dumps([rows.ids, rows.labels, rows.tested, classes]).encode())
    shape = (len(rows.ids), size, size, 3)
    images = np.lib.format.open_memmap(work / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    images[:] = np.memmap(work / "raw", dtype=np.uint8, mode="r", shape=shape)
    images.flush()
    (work / "raw").unlink()
    index = {name: i for i, name in enumerate(classes)}
    np.save(work / "labels.npy", np.array([index[label] for label in rows.labels], dtype=np.int64))
    np.save(work / "tested.npy", np.array(rows.tested, dtype=bool))
    (work / "ids.json").write_text(json.dumps(rows.ids), encoding="utf-8")
    counts = {"size": size, "rows": len(rows.ids), "skipped": source.skipped, "bad": rows.bad}
    meta = {"classes": classes, "digest": hasher.hexdigest(), **counts}
    (work / "store.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _decode_all(source: Layout, raw_path: Path, rows: _PackedRows, hasher: Any, on_progress: OnProgress) -> None:
    """Decode every image to `raw_path`, one after another, and hash the pixels."""
    expected = source.expected()
    with open(raw_path, "wb") as raw, Decoding(partial(_pixels, source.spec.size)) as decoding:
        items = source.items()
        while chunk := list(islice(items, CHUNK)):
            decoded = decoding.begin(chunk)()
            rows.bad += [pixels for pixels in decoded if isinstance(pixels, str)]
            _refuse_bad(rows.bad, source.spec)
            content = b"".join(pixels.tobytes() for pixels in decoded if not isinstance(pixels, str))
            raw.write(content)
            hasher.update(content)
            rows.add([item for item, pixels in zip(chunk, decoded, strict=True) if not isinstance(pixels, str)])
            on_progress(len(rows.ids), expected)


def _pixels(size: int, item: Item) -> Pixels | str:
    """Return the image, or a sentence that says which image can't be used and why."""
    if isinstance(item.content, np.ndarray):
        return resize(item.content, size)
    try:
        return decode(item.content, size)
    except UnreadableImageError as error:
        name = item.content if isinstance(item.content, Path) else item.id
        return f"{name}: the image {error}"


def _refuse_bad(bad: list[str], spec: DataSpec) -> None:
    """Raise UserInputError where more images are bad than the team allows."""
    if len(bad) > spec.max_bad:
        shown = "\n".join(f"{text}." for text in bad[:MOST_SHOWN])
        hint = (
            "Repair or remove it, or allow some with data.max_bad." if spec.max_bad == 0 else f"data.max_bad is {spec.max_bad}."
        )
        raise UserInputError(f"{shown} {hint}")


def _check_rows(spec: DataSpec, rows: _PackedRows, classes: list[str]) -> None:
    """Raise UserInputError for rows that can't be split, trained on or fused."""
    where = f"data.root {spec.root}" if spec.root else f"data.dataset {spec.dataset}"
    if not rows.ids:
        raise UserInputError(f"{where}: no image found. Expected CLASS/IMAGE or train/CLASS/IMAGE.")
    if len(set(rows.ids)) < len(rows.ids):
        repeated = Counter(rows.ids).most_common(1)[0][0]
        raise UserInputError(f"{where}: {repeated} is there twice. Remove one.")
    if len(classes) < 2:
        raise UserInputError(f"{where}: only one class ({classes[0]}). A classifier needs at least two class folders.")
    trained = Counter(label for label, is_test in zip(rows.labels, rows.tested, strict=True) if not is_test)
    for name in classes:
        if trained[name] < MIN_PER_CLASS:
            raise UserInputError(
                f"{where}: class {name!r} has {trained[name]} training images; at least {MIN_PER_CLASS} are needed to split them."
            )
