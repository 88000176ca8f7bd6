"""Checksums of a packed store's pieces: a flipped byte in an image or a label would silently change the weights.

`checks.json` is in the store's folder. A store of up to 2 GB is read in full at the start of each sweep. In a larger store, files
with unchanged size, modification time and inode are only sampled: a random 5 % of their pieces is read, drawn anew each time.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from workers.data.store import Store
from workers.diagnostics.cores import available_cores
from workers.storage.files import write_bytes

NAME = "checks.json"
PIECE_BYTES = 4 << 20
READ_IN_FULL_BYTES = 2 << 30  # the largest store that is always read in full
SAMPLED_FRACTION = 0.05  # share of the pieces read in the unchanged files of a larger store


class FileCheck(BaseModel):
    """Expected size and checksums of a file of a store.

    Attributes:
        size: Its size in bytes.
        pieces: CRC-32 of each piece of PIECE_BYTES bytes.
        seen: Size, modification time in nanoseconds and inode when the checksums were computed.
    """

    model_config = ConfigDict(frozen=True)

    size: int
    pieces: list[int]
    seen: tuple[int, int, int]


class StoreChecks(BaseModel):
    """The content of checks.json, with the digest of its store."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    digest: str
    files: dict[str, FileCheck]


def keep_checks(folder: Path) -> None:
    """Write the checksums of a store's current files."""
    files = {}
    for path in (folder / name for name in Store.FILES):
        seen = _stamp(path)
        pieces = list(_read_pieces(path, range(-(-seen[0] // PIECE_BYTES))))
        files[path.name] = FileCheck(size=seen[0], pieces=pieces, seen=seen)
    checks = StoreChecks(digest=Store(folder).digest, files=files)
    write_bytes(folder / NAME, checks.model_dump_json().encode(), "checks")


def damaged_file(store: Store) -> str | None:
    """Return the name of a missing or damaged file of a store, or None if all are intact."""
    try:
        checks = StoreChecks.model_validate_json((store.folder / NAME).read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValidationError):
        return NAME
    is_large = sum(check.size for check in checks.files.values()) > READ_IN_FULL_BYTES
    for name, check in checks.files.items():
        if not _holds(store.folder / name, check, is_large):
            return name
    return None if checks.digest == store.digest else "store.json"


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _holds(path: Path, check: FileCheck, is_large: bool) -> bool:
    if not path.is_file() or path.stat().st_size != check.size:
        return False
    numbers: Sequence[int] = range(len(check.pieces))
    if is_large and _stamp(path) == tuple(check.seen):
        numbers = sorted(random.sample(numbers, max(1, round(SAMPLED_FRACTION * len(numbers)))))
    return all(found == check.pieces[number] for number, found in zip(numbers, _read_pieces(path, numbers), strict=True))


def _read_pieces(path: Path, numbers: Sequence[int]) -> Iterator[int]:
    """Yield the CRC-32 of the pieces with these numbers, computed on all cores."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(available_cores()) as pool:
            yield from pool.map(lambda number: zlib.crc32(os.pread(handle, PIECE_BYTES, number * PIECE_BYTES)), numbers)
    finally:
        os.close(handle)
