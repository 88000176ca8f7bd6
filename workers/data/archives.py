"""Read the files of a folder or an archive safely, without extracting the archive.

Archives must not contain links or `..`, and the number and size of their files are limited. An absolute name loses its leading
slash, as in `tar` itself. A symlink loop in a folder is an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from workers.data.leftovers import is_leftover
from workers.errors import UserInputError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".zip")
MAX_FILES = 20_000_000
MAX_FILE_BYTES = 1 << 30
MAX_BYTES = 1 << 42  # of a whole archive

# (name with forward slashes, content): a path if the file is on disk, else its bytes
Entry = tuple[str, bytes | Path]


@dataclass(frozen=True)
class Extent:
    """A file in an open archive, as a byte range.

    Attributes:
        archive: Path of the archive, for messages.
        handle: File descriptor to read from.
        offset: Position of the first byte.
        size: Number of bytes.
    """

    archive: Path
    handle: int
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes."""
        content = os.pread(self.handle, self.size, self.offset)
        while len(content) < self.size:  # one call reads 2 GB at most
            more = os.pread(self.handle, self.size - len(content), self.offset + len(content))
            if not more:
                raise OSError("the archive was cut off while it was read")
            content += more
        return content


@dataclass(frozen=True)
class ZippedFile:
    """A file in an open ZIP archive.

    Attributes:
        archive: Path of the archive, for messages.
        reader: The open archive.
        info: The file's entry in it.
    """

    archive: Path
    reader: zipfile.ZipFile
    info: zipfile.ZipInfo

    def read(self) -> bytes:
        """Return the bytes."""
        return self.reader.read(self.info)


Content = Path | Extent | ZippedFile  # read only when needed


def read(content: bytes | Content) -> bytes | Path:
    """Return the bytes of a file in an archive. Paths and bytes are returned unchanged.

    Raises:
        UserInputError: If the archive is damaged.
    """
    if isinstance(content, bytes | Path):
        return content
    try:
        return content.read()
    except Exception as error:  # a damaged stream raises what its compression raises
        raise _damaged(content.archive, error) from None


def is_archive(path: Path) -> bool:
    """Return whether a path names an archive that `walk` reads."""
    return path.name.lower().endswith(SUFFIXES)


def walk(root: Path) -> Iterator[Entry]:
    """Yield every regular file below a folder, sorted by name, or in an archive.

    Args:
        root: The folder or the archive.

    Yields:
        The name with forward slashes, and the content: a path if the file is on disk, else its bytes.

    Raises:
        UserInputError: If the archive or folder is damaged, or not safe to read.
    """
    if root.is_dir():
        yield from _folder(root, root, ())
        return
    try:
        yield from _zip(root) if root.name.lower().endswith(".zip") else _tar(root)
    except UserInputError:
        raise
    except Exception as error:  # a damaged stream raises what its compression raises
        raise _damaged(root, error) from None


@contextlib.contextmanager
def listed(root: Path, scratch: Path | None = None) -> Iterator[list[tuple[str, Content]]]:
    """List every regular file below a folder or in an archive before reading any, as safely as `walk`.

    A compressed tar cannot be listed without reading all of it, so its contents are copied to a temporary file.

    Args:
        root: The folder or the archive.
        scratch: Folder for the temporary file; None for the system's temporary folder.

    Yields:
        Names with forward slashes, and contents that can be read while the context lasts.

    Raises:
        UserInputError: If the archive or folder is damaged, or not safe to read.
    """
    if root.is_dir():
        yield list(_folder(root, root, ()))
        return
    with contextlib.ExitStack() as stack:
        try:
            files = _list_zip(root, stack) if root.name.lower().endswith(".zip") else _list_tar(root, stack, scratch)
        except UserInputError:
            raise
        except Exception as error:  # a damaged stream raises what its compression raises
            raise _damaged(root, error) from None
        yield files


def _damaged(root: Path, error: Exception) -> UserInputError:
    return UserInputError(f"{root}: not a readable archive ({error}). Create it or download it again.")


def _list_zip(path: Path, stack: contextlib.ExitStack) -> list[tuple[str, Content]]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    return [(name, ZippedFile(path, archive, info)) for name, info in _zip_entries(archive, path)]


def _list_tar(path: Path, stack: contextlib.ExitStack, scratch: Path | None) -> list[tuple[str, Content]]:
    """List a tar's files in place, or in a temporary copy if the tar is compressed or has sparse files."""
    try:
        file = stack.enter_context(path.open("rb"))
        with tarfile.open(fileobj=file, mode="r:") as archive:
            entries = list(_tar_entries(archive, path))
    except tarfile.ReadError:
        return _spooled(path, stack, scratch)
    if any(info.issparse() for _, info in entries):
        return _spooled(path, stack, scratch)
    return [(name, Extent(path, file.fileno(), info.offset_data, info.size)) for name, info in entries]


def _spooled(path: Path, stack: contextlib.ExitStack, scratch: Path | None) -> list[tuple[str, Content]]:
    """Copy the files of a tar to a temporary file, and list them there."""
    files: list[tuple[str, Content]] = []
    spool, offset = stack.enter_context(tempfile.TemporaryFile(dir=scratch)), 0  # noqa: SIM115  # the stack closes it
    for name, content in _tar(path):
        spool.write(content)
        files.append((name, Extent(path, spool.fileno(), offset, len(content))))
        offset += len(content)
    spool.flush()
    return files


def _folder(root: Path, folder: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
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
            yield from _folder(root, path, (*above, real))
        elif entry.is_file():
            yield _printable(path.relative_to(root).as_posix(), root), path
        elif entry.is_symlink() and not is_leftover(entry.name):
            raise UserInputError(f"{path}: a broken or circular symlink. Remove it.")


def _tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, mode="r|*") as archive:
        for name, info in _tar_entries(archive, path):
            content = archive.extractfile(info)
            assert content is not None
            yield name, content.read()


def _zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        yield from ((name, archive.read(info)) for name, info in _zip_entries(archive, path))


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
