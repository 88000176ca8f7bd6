"""Walk a folder or an archive of files without ever extracting it: names and contents, safely.

An archive may hold no links, no absolute names and no `..`; the number and the size of its files are bounded. A symlink loop in a
folder is an error.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from workers.errors import UserInputError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".zip")
MAX_FILES = 20_000_000
MAX_FILE_BYTES = 1 << 30
MAX_BYTES = 1 << 42  # of a whole archive

# (name with forward slashes, content): a path where the file lies on disk, else its bytes
Entry = tuple[str, bytes | Path]


def is_archive(path: Path) -> bool:
    """Return whether a path names an archive that `walk` reads."""
    return path.name.lower().endswith(SUFFIXES)


def walk(root: Path) -> Iterator[Entry]:
    """Yield every regular file below a folder or in an archive; those of a folder in the order of their names.

    Args:
        root: The folder or the archive.

    Yields:
        The name with forward slashes, and the content: a path where the file lies on disk, else its bytes.

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
        raise UserInputError(f"{root}: not a readable archive ({error}). Make it again, or fetch it again.") from None


def _folder(root: Path, folder: Path, above: tuple[Path, ...]) -> Iterator[Entry]:
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
        elif entry.is_symlink():
            raise UserInputError(f"{path}: a broken or circular symlink. Remove it.")


def _tar(path: Path) -> Iterator[Entry]:
    with tarfile.open(path, mode="r|*") as archive:
        total = 0
        for count, info in enumerate(archive):
            name = _safe(info.name, path, count)
            if info.issym() or info.islnk():
                raise UserInputError(f"{path}: {name} is a link; archives of images may hold none. Pack it without links.")
            if info.isfile():
                total = _bounded(info.size, total, name, path)
                content = archive.extractfile(info)
                assert content is not None
                yield name, content.read()


def _zip(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        total = 0
        for count, info in enumerate(archive.infolist()):
            name = _safe(info.filename, path, count)
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                raise UserInputError(f"{path}: {name} is a link; archives of images may hold none. Pack it without links.")
            if not info.is_dir():
                total = _bounded(info.file_size, total, name, path)
                yield name, archive.read(info)


def _safe(name: str, archive: Path, count: int) -> str:
    if count >= MAX_FILES:
        raise UserInputError(f"{archive}: more than {MAX_FILES:,} entries.")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or (parts and (parts[0].startswith("/") or ":" in parts[0])):
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
    """Return the bytes that the entries so far unpack to, this one included."""
    if size > MAX_FILE_BYTES:
        raise UserInputError(f"{archive}: {name} unpacks to {size:,} bytes; no image is that large. Remove it.")
    if before + size > MAX_BYTES:
        raise UserInputError(
            f"{archive}: unpacks to more than {MAX_BYTES:,} bytes. Split the data set, or unpack it to a folder."
        )
    return before + size
