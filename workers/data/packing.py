"""Pack a data set: decode every image in full, once, into one memory-mapped uint8 store.

Packing also checks the data. It writes to a temporary folder next to the home. If every check passes, its files are moved into
place; otherwise they are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.config.extensions import LAYOUTS
from workers.config.specs import DataSpec
from workers.data.archives import DISK_FULL_ERRNOS
from workers.data.decoded_rows import DecodedRows, OnProgress, decode_all, refuse_bad, rows_at_once, scale_deep_rows
from workers.data.labels import note_of_spellings
from workers.data.layout import Item, Layout
from workers.data.pixel_file import keep_rows, write_header
from workers.data.store import Store, StoreRecord, content_digest, find_store
from workers.data.store_checks import damaged_file, keep_checks
from workers.errors import ConclaveError, UserInputError, first_few
from workers.storage.files import file_lock, sync_folder

MIN_PER_CLASS = 3
PART_ORDER = {"": 0, "train": 0, "val": 1, "test": 2}  # a duplicate is kept in the part with the lowest rank

Check = Callable[[Store], object]


def pack_data(
    spec: DataSpec,
    home: Path,
    on_progress: OnProgress = lambda rows, expected: None,
    check: Check = lambda store: None,
    say: Callable[[str], None] = lambda text: None,
) -> Store:
    """Return the packed data of a home, packing it first if it is missing or damaged.

    Args:
        spec: The data set.
        home: The home.
        on_progress: Called with the number of rows decoded so far.
        check: Called with the store before it is used. Raises UserInputError to reject it.
        say: Called with a line of text if damaged data is packed again.

    Raises:
        UserInputError: If the data cannot be used. Nothing is left on the disk.
        ConclaveError: If the disk is full.
    """
    if store := find_store(spec, home):
        damaged = damaged_file(store)
        if damaged is None:
            refuse_bad(store.record.bad, spec)
            check(store)
            return store
        say(f"{store.folder / damaged} is damaged: the data is packed again")
    try:
        return _pack(spec, home, on_progress, check)
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        raise ConclaveError(f"{home}: no room to pack the data ({os.strerror(error.errno)}). Make room and run again.") from None


def _pack(spec: DataSpec, home: Path, on_progress: OnProgress, check: Check) -> Store:
    base = _existing_parent(home)
    source = LAYOUTS[spec.dataset](spec)
    name = f".conclave-{source.key()}"
    # The lock only saves work: whoever packs twice moves equal files.
    with file_lock(lock := base / f"{name}.lock"), contextlib.ExitStack() as leftovers:
        leftovers.callback(lock.unlink, missing_ok=True)
        store = find_store(spec, home)
        if store and damaged_file(store) is None:
            check(store)
            return store
        for stale in base.glob(f"{name}-*"):  # left by a killed process: we hold its lock
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
        leftovers.callback(shutil.rmtree, work, ignore_errors=True)
        source.scratch = work
        _write_store(source, work, on_progress)
        check(Store(work))
        target = home / "data" / source.key()  # computed again, because a download adds files to the source
        _put_in_place(work, target)
    return Store(target)


def _put_in_place(work: Path, target: Path) -> None:
    """Move the files of a packed store into place. Those of a damaged store are replaced, and its splits stay."""
    keep_checks(work)
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(work.iterdir(), key=lambda path: path.name == "store.json")
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for old in (target / path.name for path in reversed(files)):  # first store.json, without which a store counts as missing
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    for path in files:
        path.rename(target / path.name)
    sync_folder(target)
    sync_folder(target.parent)


def _existing_parent(path: Path) -> Path:
    """Return the nearest existing folder at or above `path`. Raises UserInputError if it is not writable."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir() or not os.access(path, os.W_OK):
        raise UserInputError(f"--home: {path} is not a folder that can be written to. Choose another --home.")
    return path


def _write_store(source: Layout, work: Path, on_progress: OnProgress) -> None:
    size, images = source.spec.size, work / "images.npy"
    with images.open("wb") as file, tempfile.NamedTemporaryFile(dir=work) as deep_file:
        write_header(file, 0, size)  # leaves room for the final header
        rows = decode_all(source, file, deep_file, on_progress)
        write_header(file, len(rows.items), size)
        file.flush()
        deep_file.flush()
        scale_deep_rows(rows, images, Path(deep_file.name))
    classes = order_classes(set(rows.labels), source.spec)
    _check_rows(source.spec, rows, classes)
    extra = _arrays(rows)
    kept = rows_without_duplicates(source.spec, rows.items, extra["digests"])
    if len(kept) < len(rows.items):
        source.notes.append(f"left out {len(rows.items) - len(kept):,} images because of duplicates (`duplicates: drop`)")
        for part in sorted({item.part for item in rows.items} - {rows.items[i].part for i in kept}):
            source.notes.append(f"every {part} image is also in another part and was left out; other rows are drawn instead")
        rows.items, extra = [rows.items[i] for i in kept], {name: values[kept] for name, values in extra.items()}
        _check_rows(source.spec, rows, classes)
        keep_rows(images, kept, rows_at_once(size))
    index = {name: i for i, name in enumerate(classes)}
    np.save(work / "labels.npy", np.array([index[label] for label in rows.labels], dtype=np.int64))
    np.save(work / "tested.npy", np.array(rows.marked("test"), dtype=bool))
    np.savez(work / "rows.npz", allow_pickle=False, **extra)
    (work / "ids.json").write_text(json.dumps(rows.ids), encoding="utf-8")
    record = StoreRecord(
        classes=classes,
        digest="",
        size=size,
        rows=len(rows.items),
        skipped=source.skipped.counts.total(),
        bad=rows.bad,
        bits=rows.bits,
        interpolation=source.spec.interpolation or "bilinear",
        notes=[*source.notes, *source.skipped.notes(), *rows.notes()],
        origins=source.origins,
        image_sizes=_typical_sizes(rows.sizes),
    )
    record_file = work / "store.json"
    record_file.write_text(record.model_dump_json(indent=1), encoding="utf-8")
    record = record.model_copy(update={"digest": content_digest(Store(work))})
    record_file.write_text(record.model_dump_json(indent=1), encoding="utf-8")


def _arrays(rows: DecodedRows) -> dict[str, NDArray[Any]]:
    """Return the arrays of rows.npz by name. Validation rows, groups, folds and weights are left out if unused."""
    digests = np.frombuffer(b"".join(rows.digests), dtype=np.uint64).reshape(-1, 2)
    arrays: dict[str, NDArray[Any]] = {"digests": digests, "looks": np.array(rows.looks, dtype=np.uint64)}
    if any(validation := rows.marked("val")):
        arrays["validation"] = np.array(validation, dtype=bool)
    if any(item.group for item in rows.items):
        # A row without a group forms its own group.
        names = [item.group or f"\0{i}" for i, item in enumerate(rows.items)]
        arrays["groups"] = np.unique(names, return_inverse=True)[1].astype(np.int64)
    if any(item.fold is not None for item in rows.items):
        arrays["folds"] = np.array([-1 if item.fold is None else item.fold for item in rows.items], dtype=np.int64)
    if len({item.weight for item in rows.items}) > 1:
        arrays["weights"] = np.array([item.weight for item in rows.items], dtype=np.float64)
    return arrays


def rows_without_duplicates(spec: DataSpec, items: Sequence[Item], digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the numbers of the rows to keep: all rows, unless `spec.duplicates` is "drop".

    If equal images share a class, only the first is kept, training rows before others. If their classes differ, all are dropped,
    because the right class is unknown.

    Args:
        spec: The data set.
        items: The rows.
        digests: (N, 2) uint64, a digest of each row's pixels.
    """
    if spec.duplicates != "drop":
        return np.arange(len(items))
    order = np.array(sorted(range(len(items)), key=lambda i: PART_ORDER.get(items[i].part, 0)), dtype=np.int64)
    _, first, image = np.unique(digests[order], axis=0, return_index=True, return_inverse=True)
    label = np.unique([items[i].label for i in order], return_inverse=True)[1]
    labels_of_image = np.bincount(np.unique(np.stack([image.reshape(-1), label]), axis=1)[0])
    return np.sort(order[first[labels_of_image == 1]])


def _typical_sizes(sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if ordered else []


def order_classes(labels: set[str], spec: DataSpec) -> list[str]:
    """Return the class names in order: as data.classes lists them, else numbers by their value, else by text.

    Raises:
        UserInputError: If data.classes can't be read, or lists other classes than the data has.
    """
    if spec.classes is None:
        return sorted(labels, key=lambda name: (int(name), name)) if all(map(_is_number, labels)) else sorted(labels)
    try:
        listed = [line.strip() for line in spec.classes.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(f"data.classes: {spec.classes} can't be read ({error}).") from None
    for name, count in Counter(listed).items():
        if name not in labels or count > 1:
            what = "is no class of the data" if name not in labels else "is listed twice"
            raise UserInputError(f"data.classes: {spec.classes} lists {name!r}, which {what}.")
    if left := sorted(labels.difference(listed)):
        raise UserInputError(f"data.classes: {spec.classes} lacks the class {first_few([repr(name) for name in left])}.")
    return listed


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _check_rows(spec: DataSpec, rows: DecodedRows, classes: list[str]) -> None:
    """Raise UserInputError for rows that can't be split, trained on or fused."""
    where = f"data.root {spec.root}" if spec.root else f"data.dataset {spec.dataset}"
    if not rows.ids:
        raise UserInputError(f"{where}: no image found. Expected CLASS/IMAGE or train/CLASS/IMAGE.")
    if lost := sorted(rows.bad_labels.difference(classes)):
        raise UserInputError(f"{where}: no image of class {lost[0]!r} can be read. Repair them, or remove the class.")
    if len(set(rows.ids)) < len(rows.ids):
        repeated = Counter(rows.ids).most_common(1)[0][0]
        raise UserInputError(f"{where}: {repeated} occurs twice. Remove one.")
    if len(classes) < 2:
        raise UserInputError(f"{where}: only one class ({classes[0]}). A classifier needs at least two class folders.")
    trained = Counter(item.label for item in rows.items if item.part in ("", "train"))
    for name in classes:
        if trained[name] < MIN_PER_CLASS:
            raise UserInputError(
                f"{where}: class {name!r} has {trained[name]} training images; at least {MIN_PER_CLASS} are needed to split them."
                f"{note_of_spellings(classes)}"
            )
        if not any(item.weight for item in rows.items if item.label == name and item.part in ("", "train")):
            raise UserInputError(f"{where}: every training image of class {name!r} has the weight 0. Give one a larger weight.")
