"""A trainer's machine that does not share the driver's disk: a home of its own, and the data streamed to it once.

CONCLAVE_CACHE (~/.cache/conclave) holds both: data/DIGEST, a packed store, and home/, where its fits are made before they go
to the tracking store. What was not used for the longest goes first where it takes more than CONCLAVE_CACHE_GB (50).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from workers.data import Store
from workers.errors import ConclaveError
from workers.job import Job

CHUNK = 16 << 20
Read = Callable[[str, int], bytes]  # at most CHUNK bytes of a store's file, from an offset on


@dataclass(frozen=True)
class Disk:
    """The driver's, known by a file that is there, with this content, while the driver runs."""

    marker: Path
    content: str

    def is_here(self) -> bool:
        try:
            return self.marker.read_text(encoding="utf-8") == self.content
        except OSError:
            return False


def here(job: Job, read: Read) -> Job:
    """The same job with a home and a store of this machine's own."""
    root, digest = cache(), str(json.loads(read("store.json", 0))["digest"])
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConclaveError(f"{digest!r} is no digest of a packed store")
    store = root / "data" / digest
    store.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(store.parent / f".{digest}.lock"):
        if not (store / "store.json").is_file():
            _stream(store, read, digest)
    os.utime(store)
    evict(root, float(os.environ.get("CONCLAVE_CACHE_GB", "50")) * 1e9, {store, root / "home" / "jobs" / job.signature})
    return job.model_copy(update={"home": root / "home", "store": store})


def cache() -> Path:
    return Path(os.environ.get("CONCLAVE_CACHE", Path.home() / ".cache" / "conclave")).absolute()


def read_chunk(store: Path, name: str, offset: int) -> bytes:
    """The lender's side. Raises ConclaveError where the name is none of a store's files."""
    if name not in Store.FILES:
        raise ConclaveError(f"{name}: not a file of a packed store")
    with open(store / name, "rb") as file:
        file.seek(offset)
        return file.read(CHUNK)


def _stream(store: Path, read: Read, digest: str) -> None:
    """File by file into a folder beside it, which is renamed into place once its content has the digest."""
    for stale in store.parent.glob(f".{digest}-*"):  # of a process that was killed: we hold its lock
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=store.parent))
    try:
        for name in Store.FILES:
            with open(work / name, "wb") as file:
                while chunk := read(name, file.tell()):
                    file.write(chunk)
        if (found := content_digest(Store(work))) != digest:
            raise ConclaveError(f"the data came over with digest {found[:12]}, not {digest[:12]}. Run again.")
        work.rename(store)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def content_digest(store: Store) -> str:
    """As packing computed it, from the arrays themselves."""
    hasher = hashlib.sha256()
    for start in range(0, len(store.images), 4096):
        hasher.update(np.ascontiguousarray(store.images[start : start + 4096]).data)
    labels = [store.classes[label] for label in store.labels]
    hasher.update(json.dumps([store.ids, labels, store.tested.tolist(), store.classes]).encode())
    return hasher.hexdigest()


def evict(root: Path, most: float, keep: set[Path]) -> None:
    """Remove what was not used for the longest until the rest takes at most so many bytes. What is in use stays."""
    entries = [*(root / "data").glob("[!.]*"), *(root / "home" / "jobs").glob("[!.]*")]
    taken = {entry: _bytes(entry) for entry in entries}
    for entry in sorted(entries, key=_used):
        if sum(taken.values()) <= most:
            return
        if entry not in keep:
            with contextlib.suppress(Timeout), _unused(entry):
                shutil.rmtree(entry, ignore_errors=True)
                del taken[entry]


@contextlib.contextmanager
def _unused(entry: Path) -> Iterator[None]:
    """Raises Timeout where a trainer is at work on it. Other trainers keep the pages of a store that they have mapped."""
    lock = entry / ".lock" if entry.parent.name == "jobs" else entry.parent / f".{entry.name}.lock"
    with FileLock(lock, timeout=0):
        yield


def _used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # another trainer made room
        return 0.0


def _bytes(folder: Path) -> int:
    """Of what is there: a trainer at work removes its older checkpoints meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total
