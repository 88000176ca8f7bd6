"""Read the files of a folder or an archive safely, without extracting the archive.

Archives must not contain links or `..`, and the number and size of their files are limited. An absolute name loses its leading
slash, as in `tar` itself. A symlink loop in a folder is an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from workers.data.leftovers import is_leftover
from workers.errors import UserInputError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".zip")
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota exceeded, file too large
MAX_FILES = 20_000_000
MAX_FILE_BYTES = 1 << 30
MAX_BYTES = 1 << 42  # of a whole archive


@dataclass(frozen=True)
class ArchivedFile:
    """A file in an open archive.

    Attributes:
        archive: Path of the archive, for messages.
        load: Returns the file's bytes.
    """

    archive: Path
    load: Callable[[], bytes]


Content = Path | ArchivedFile  # read only when needed


def read(content: bytes | Content) -> bytes | Path:
    """Return the bytes of a file in an archive. Paths and bytes are returned unchanged.

    Raises:
        UserInputError: If the archive is damaged.
    """
    if not isinstance(content, ArchivedFile):
        return content
    with _reading(content.archive):
        return content.load()


def is_archive(path: Path) -> bool:
    """Return whether a path names an archive that `list_files` reads."""
    return path.name.lower().endswith(SUFFIXES)


def list_files(root: Path, open_files: contextlib.ExitStack, scratch: Path | None = None) -> list[tuple[str, Content]]:
    """List every regular file below a folder, sorted by name, or in an archive, before reading any.

    A compressed tar cannot be listed without reading all of it, so its contents are copied to a temporary file.

    Args:
        root: The folder or the archive.
        open_files: Keeps the archive open. The contents can be read until it is closed.
        scratch: Folder for the temporary file; None for the system's temporary folder.

    Returns:
        Names with forward slashes, and contents.

    Raises:
        UserInputError: If the archive or folder is damaged, or not safe to read.
    """
    if root.is_dir():
        return list(walk(root))
    with _reading(root):
        return _list_zip(root, open_files) if root.name.lower().endswith(".zip") else _list_tar(root, open_files, scratch)


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged stream raises what its compression raises
        if isinstance(error, UserInputError) or (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS):
            raise
        raise UserInputError(f"{archive}: not a readable archive ({error}). Create it or download it again.") from None


def _list_zip(path: Path, open_files: contextlib.ExitStack) -> list[tuple[str, Content]]:
    archive = open_files.enter_context(zipfile.ZipFile(path))
    return [(name, ArchivedFile(path, partial(archive.read, info))) for name, info in _zip_entries(archive, path)]


def _list_tar(path: Path, open_files: contextlib.ExitStack, scratch: Path | None) -> list[tuple[str, Content]]:
    """List a tar's files in place, or in a temporary copy if the tar is compressed or has sparse files."""
    try:
        file = open_files.enter_context(path.open("rb"))
        with tarfile.open(fileobj=file, mode="r:") as archive:
            entries = list(_tar_entries(archive, path))
    except tarfile.ReadError:
        return _list_copied_tar(path, open_files, scratch)
    if any(info.issparse() for _, info in entries):
        return _list_copied_tar(path, open_files, scratch)
    return [(name, _extent(path, file.fileno(), info.offset_data, info.size)) for name, info in entries]


def _list_copied_tar(path: Path, open_files: contextlib.ExitStack, scratch: Path | None) -> list[tuple[str, Content]]:
    """Copy the files of a tar to a temporary file, and list them there."""
    files: list[tuple[str, Content]] = []
    copy = open_files.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115  # the stack closes it
    with tarfile.open(path, mode="r|*") as archive:
        for name, info in _tar_entries(archive, path):
            content = archive.extractfile(info)
            assert content is not None
            files.append((name, _extent(path, copy.fileno(), copy.tell(), info.size)))
            shutil.copyfileobj(content, copy)
    copy.flush()
    return files


def _extent(archive: Path, handle: int, offset: int, size: int) -> ArchivedFile:
    """Return a file that is a byte range of an open file."""

    def load() -> bytes:
        content = os.pread(handle, size, offset)  # reads up to 2 GB, and MAX_FILE_BYTES is less
        if len(content) < size:
            raise OSError("the archive was cut off while it was read")
        return content

    return ArchivedFile(archive, load)


def walk(root: Path, folder: Path | None = None, above: tuple[Path, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of every regular file below a folder, sorted by name.

    Args:
        root: The folder that names are relative to.
        folder: The folder to walk; by default `root`.
        above: The folders above it, for telling loops of symlinks.

    Raises:
        UserInputError: If a folder cannot be read, or not safely.
    """
    folder = folder or root
    try:
        real = folder.resolve(strict=True)
        if real in above:
            raise UserInputError(f"{folder}: a symlink that leads back to {real}: a loop. Remove the link.")
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise UserInputError(f"{folder}: can't be read ({error.strerror}). Check the link or its permissions.") from None
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir():
            yield from walk(root, path, (*above, real))
        elif entry.is_file():
            yield _printable(path.relative_to(root).as_posix(), root), path
        elif entry.is_symlink() and not is_leftover(entry.name):
            raise UserInputError(f"{path}: a broken or circular symlink. Remove it.")


def _tar_entries(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    total = 0
    for count, info in enumerate(archive):
        name = _safe(info.name, path, count)
        if (info.issym() or info.islnk()) and not is_leftover(name):
            raise UserInputError(f"{path}: {name} is a link; archives of images may hold none. Pack it without links.")
        if info.isfile():
            total = _bounded(info.size, total, name, path)
            yield name, info


def _zip_entries(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    total = 0
    for count, info in enumerate(archive.infolist()):
        name = _safe(info.filename, path, count)
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise UserInputError(f"{path}: {name} is a link; archives of images may hold none. Pack it without links.")
        if info.flag_bits & 1:
            raise UserInputError(f"{path}: is protected by a password. Unpack it, and use the folder.")
        if not info.is_dir():
            total = _bounded(info.file_size, total, name, path)
            yield name, info


def _safe(name: str, archive: Path, count: int) -> str:
    if count >= MAX_FILES:
        raise UserInputError(f"{archive}: more than {MAX_FILES:,} entries.")
    parts = PurePosixPath(name.replace("\\", "/").lstrip("/")).parts
    if ".." in parts or (parts and re.match("[A-Za-z]:", parts[0])):
        raise UserInputError(f"{archive}: the entry {name!r} points outside the archive. Don't use this archive.")
    return _printable("/".join(parts), archive)


def _printable(name: str, root: Path) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise UserInputError(f"{root}: the file name {shown!r} is not UTF-8. Rename the file.") from None
    return name


def _bounded(size: int, before: int, name: str, archive: Path) -> int:
    """Return the unpacked size of the entries so far, including this entry."""
    if size > MAX_FILE_BYTES:
        raise UserInputError(f"{archive}: {name} unpacks to {size:,} bytes; no image is that large. Remove it.")
    if before + size > MAX_BYTES:
        raise UserInputError(
            f"{archive}: unpacks to more than {MAX_BYTES:,} bytes. Split the data set, or unpack it to a folder."
        )
    return before + size
