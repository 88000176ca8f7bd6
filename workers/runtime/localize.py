"""Prepare a machine that does not share the driver's disk: give it a local home, and stream the data to it once.

CONCLAVE_CACHE (the user's cache folder, ~/.cache/conclave on Linux) holds both: data/DIGEST is a packed store, and home/ holds
trainings until they reach the tracking store. If the cache exceeds CONCLAVE_CACHE_GB (50), the least recently used entries are
removed first.
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

from filelock import Timeout

from workers.config.job import Job
from workers.data.splits import read_split, split_file
from workers.data.store import Store, content_digest
from workers.data.store_checks import damaged_file, keep_checks
from workers.errors import ConclaveError, CorruptFileError, IncompleteTransferError
from workers.storage.artifacts import MemberArtifact
from workers.storage.cache import cache_folder
from workers.storage.files import file_lock, write_bytes

CHUNK_BYTES = 16 << 20
WEIGHTS = "weights"  # name by which a job's file of weights is read from the driver
Read = Callable[[str, int], bytes]  # (file name, offset) -> at most CHUNK_BYTES bytes of a store's file


@dataclass(frozen=True)
class DriverDisk:
    """The driver's disk, recognised by a marker file with this content, which exists while the driver runs."""

    marker: Path
    content: str

    def is_visible(self) -> bool:
        """Return whether this process sees the driver's disk."""
        try:
            return self.marker.read_text(encoding="utf-8") == self.content
        except OSError:
            return False


def localize_job(job: Job, read: Read) -> Job:
    """Return the same job with a home and a packed store on this machine.

    Args:
        job: The job, with the driver's paths.
        read: Reads from the driver's store.

    Raises:
        ConclaveError: If the data did not arrive complete.
    """
    root, digest = cache_folder(), str(json.loads(read("store.json", 0))["digest"])
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConclaveError(f"{digest!r} is no digest of a packed store")
    store = root / "data" / digest
    store.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(_store_lock(store)):
        if (store / "store.json").is_file() and damaged_file(Store(store)):
            shutil.rmtree(store)
        if not (store / "store.json").is_file():
            _stream(store, read, digest)
        _fetch_split(Store(store), job.split, read)
    os.utime(store)
    home = root / "home"
    in_use = {store, *(MemberArtifact.in_home(home, signature).root for signature in job.signatures)}
    evict_cache(root, float(os.environ.get("CONCLAVE_CACHE_GB", "50")) * 1e9, in_use)
    return _with_weights(job.model_copy(update={"home": home, "store": store}), root / "weights", read)


def _fetch_split(store: Store, key: str, read: Read) -> None:
    """Copy a split to a store on this machine, unless it is there."""
    try:
        read_split(store, key)
    except (FileNotFoundError, CorruptFileError):
        path, content = store.folder / split_file(key), bytearray()
        while chunk := read(split_file(key), len(content)):
            content += chunk
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, bytes(content))
        read_split(store, key)


def _with_weights(job: Job, folder: Path, read: Read) -> Job:
    """Return the job with its file of weights in this machine's cache, fetched from the driver if it is not there."""
    if job.recipe.weights is None:
        return job
    path = folder / f"{job.weights_sha256}{job.recipe.weights.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".lock"):
        if not path.is_file():
            content = bytearray()
            while chunk := read(WEIGHTS, len(content)):
                content += chunk
            if hashlib.sha256(content).hexdigest() != job.weights_sha256:
                raise IncompleteTransferError(f"the weights {job.recipe.weights} didn't arrive complete.")
            write_bytes(path, bytes(content))
    return job.model_copy(update={"recipe": job.recipe.model_copy(update={"weights": path})})


def read_chunk(job: Job, name: str, offset: int) -> bytes:
    """Return at most CHUNK_BYTES bytes of a file of a job's store, or of its weights. Raises ConclaveError for other files."""
    if name == WEIGHTS and job.recipe.weights:
        path = job.recipe.weights
    elif name in (*Store.FILES, split_file(job.split)):
        path = job.store / name
    else:
        raise ConclaveError(f"{name}: not a file of a packed store")
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(CHUNK_BYTES)


def _stream(store: Path, read: Read, digest: str) -> None:
    """Copy a store file by file into a temporary folder, and rename that into place if its digest matches."""
    for stale in store.parent.glob(f".{digest}-*"):  # left by a killed process: we hold its lock
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=store.parent))
    try:
        for name in Store.FILES:
            with open(work / name, "wb") as file:
                while chunk := read(name, file.tell()):
                    file.write(chunk)
        if (arrived := content_digest(Store(work))) != digest:
            raise IncompleteTransferError(f"the data came over with digest {arrived[:12]}, not {digest[:12]}. Run again.")
        keep_checks(work)
        work.rename(store)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def evict_cache(root: Path, most_bytes: float, in_use: set[Path]) -> None:
    """Remove least recently used entries until the rest takes at most `most_bytes`. Entries in use are kept."""
    jobs = [artifact.root for artifact in MemberArtifact.all_in_home(root / "home")]
    entries = [*(root / "data").glob("[!.]*"), *jobs]
    sizes = {entry: _folder_bytes(entry) for entry in entries}
    for entry in sorted(entries, key=_last_used):
        if sum(sizes.values()) <= most_bytes:
            return
        if entry not in in_use:
            with contextlib.suppress(Timeout), _lock_entry(entry, is_job=entry in jobs):
                shutil.rmtree(entry, ignore_errors=True)
                del sizes[entry]


def _store_lock(store: Path) -> Path:
    return store.parent / f".{store.name}.lock"


@contextlib.contextmanager
def _lock_entry(entry: Path, is_job: bool) -> Iterator[None]:
    """Lock a cache entry, or raise Timeout if a trainer has it. Trainers that have mapped a store keep its pages."""
    with file_lock(MemberArtifact(entry).lock_path if is_job else _store_lock(entry), timeout=0):
        yield


def _last_used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # another trainer removed it
        return 0.0


def _folder_bytes(folder: Path) -> int:
    """Return the size of a folder in bytes. A running trainer may remove older checkpoints meanwhile."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(directory, name)).st_size
    return total
