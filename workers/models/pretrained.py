"""Weights that a source of networks has for an architecture: downloaded once into the cache, and checked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from workers.errors import UserInputError
from workers.models.source import PretrainedWeights
from workers.storage.cache import cache_folder
from workers.storage.files import UMASK, file_sha256

MIRROR = "CONCLAVE_WEIGHTS_MIRROR"  # an address below which the files lie by their names, for where the sources are out of reach
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0
SAY_SECONDS = 5.0


def cached_file(weights: PretrainedWeights) -> Path:
    """Return the place of the file in the cache, where it may be missing."""
    return cache_folder() / "weights" / weights.file


def download(weights: PretrainedWeights, say: Callable[[str], None]) -> Path:
    """Return the file in the cache, downloaded first if it is missing or damaged.

    Args:
        weights: The weights.
        say: Shows a line to the user.

    Raises:
        UserInputError: If the file can't be downloaded, or is another one than the source names. Nothing is left then.
    """
    path = cached_file(weights)
    if path.is_file() and file_sha256(path).startswith(weights.sha256 or _noted(path)):
        return path
    mirror = os.environ.get(MIRROR)
    url = f"{mirror.rstrip('/')}/{weights.file}" if mirror else weights.url
    say(f"downloading {weights} from {url}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(weights, url, path, say)
    except (URLError, HTTPException, OSError) as error:
        if isinstance(error, HTTPError):  # it is the server's answer as well
            error.close()
        raise UserInputError(_why(error, weights, url, path)) from None
    return path


def _download(weights: PretrainedWeights, url: str, path: Path, say: Callable[[str], None]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            digest = _copy(url, file.write, say, weights.file)
            if not digest.startswith(weights.sha256):
                begins = digest[: len(weights.sha256)]
                raise URLError(f"it is another file, whose SHA-256 begins with {begins} and not with {weights.sha256}")
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~UMASK)
            os.replace(file.name, path)
            if not weights.sha256:
                _note_of(path).write_text(digest, encoding="utf-8")
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)


def _why(error: Exception, weights: PretrainedWeights, url: str, path: Path) -> str:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        needed = f"there is no room for {weights} in {path.parent}"
        return f"{needed}. Free some, or set CONCLAVE_CACHE to a folder on another disk."
    return f"{url}: can't be downloaded ({getattr(error, 'reason', None) or error}). Put the file at {path}, and run again."


def _copy(url: str, write: Callable[[bytes], object], say: Callable[[str], None], name: str) -> str:
    """Write what an address gives, and return its SHA-256. Raises HTTPException if the answer is cut off."""
    hasher, done, said = hashlib.sha256(), 0, time.monotonic()
    with urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # a library's address, or one that the user set
        expected = int(answer.headers.get("Content-Length") or 0)
        while chunk := answer.read(CHUNK_BYTES):
            write(chunk)
            hasher.update(chunk)
            done += len(chunk)
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                say(f"downloading {name}: {done / 1e6:.0f}{f' of {expected / 1e6:.0f}' if expected else ''} MB")
    if expected and done < expected:
        raise HTTPException(f"the connection ended after {done:,} of {expected:,} bytes")
    return hasher.hexdigest()


def _note_of(path: Path) -> Path:
    """Return the file that keeps the SHA-256 of a download whose source names none."""
    return path.with_name(f"{path.name}.sha256")


def _noted(path: Path) -> str:
    """Return the SHA-256 of a download, or "" if it was put there by hand."""
    try:
        return _note_of(path).read_text(encoding="utf-8")
    except OSError:
        return ""
