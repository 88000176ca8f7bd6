"""Write files completely or not at all, and compute digests of files and tensors."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from workers.diagnostics.faults import fault_point

if TYPE_CHECKING:
    from torch import Tensor


UMASK = os.umask(0o077)  # reading the umask requires setting it
os.umask(UMASK)
LEASE_SECONDS = 30.0  # without a sign of life, after which a lease has no holder


def file_lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """Return a file lock that any user with write access can take: a home's owner, and a shared home's group.

    The kernel releases it when its holder dies. On a file system without such locks it is a lease instead: a file that the
    holder touches again and again, and that counts as left behind after LEASE_SECONDS without.

    Args:
        path: The lock's file.
        timeout: Seconds to wait for it; by default forever.
    """
    mode = 0o666 & ~UMASK
    if _has_flock(path.parent):
        return FileLock(path, timeout, mode, fallback_to_soft=False)
    return SoftFileLease(path.with_name(f"{path.name}-lease"), timeout=timeout, mode=mode, lease_duration=LEASE_SECONDS)


def acquire_now(lock: BaseFileLock, on_wait: Callable[[], None] = lambda: None) -> None:
    """Take a lock that nobody holds, or raise Timeout. Of a lease, wait until its holder gives a sign of life.

    Args:
        lock: The lock.
        on_wait: Called before the wait.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not isinstance(lock, SoftFileLease):
            raise
        on_wait()
        lock.acquire(timeout=LEASE_SECONDS + 5)


def _has_flock(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # any other error is told by who takes the lock
        return error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
    return True


def write_bytes(path: Path, content: bytes, point: str = "file", mode: int = 0o666 & ~UMASK) -> None:
    """Write a file atomically: a temporary file beside it, fsync, rename, fsync of the folder.

    Args:
        path: The file.
        content: What to write.
        point: Name of the fault points that tests inject faults at.
        mode: Permissions of the file; by default those of the umask.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            fault_point(f"{point}.opened")
            file.write(memoryview(content)[: len(content) // 2])
            file.flush()
            fault_point(f"{point}.half")
            file.write(memoryview(content)[len(content) // 2 :])
            file.flush()
            fault_point(f"{point}.fsync")
            os.fsync(file.fileno())
        os.chmod(name, mode)
        fault_point(f"{point}.rename")
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):  # Python's message names the temporary file
            raise IsADirectoryError(error.errno, "there is a folder in the place of this file", str(path)) from None
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush renames in `folder` to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any, point: str = "file") -> None:
    """Write JSON as `write_bytes` does. Raises ValueError for numbers that JSON cannot hold, such as NaN."""
    write_bytes(path, json.dumps(content, indent=1, allow_nan=False).encode(), point)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of the name, dtype, shape and bytes of every tensor, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
