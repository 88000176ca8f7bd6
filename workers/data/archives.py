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
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from workers.data.images import is_image
from workers.data.leftovers import is_leftover
from workers.errors import UserInputError, first_few

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst", ".zip")
TAR_HEADER = 265  # bytes, up to the end of the magic number
PART_OF_ARCHIVE = re.compile(r"\.(zip|7z|rar|tar(\.\w+)?)\.\d{3}$|\.z\d\d$|\.part\d+\.rar$", re.IGNORECASE)
ZIP_MAGIC, ZSTD_MAGIC = (b"PK\x03\x04", b"PK\x05\x06"), b"\x28\xb5\x2f\xfd"
TAR_MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", ZSTD_MAGIC)  # of the compressions that a tar may have
UNPACKERS = {b"7z\xbc\xaf": ("7-Zip", "7z x"), b"Rar!": ("RAR", "unrar x")}
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota exceeded, file too large
UTF8_FLAG, UNICODE_PATH = 0x800, 0x7075  # of a ZIP entry: the flag, and the field, for names in UTF-8
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


def has_archive_name(path: Path) -> bool:
    """Return whether a path ends like the name of an archive that `list_files` reads."""
    return path.name.lower().endswith(SUFFIXES)


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive that `list_files` reads, by its content or its name.

    Raises:
        UserInputError: If it is an archive of another kind, or a part of one. The message says how to unpack it.
    """
    first = _first_bytes(path)
    if PART_OF_ARCHIVE.search(path.name):
        raise UserInputError(f"{path}: one part of a split archive. Join the parts or unpack them together, and give the whole.")
    for magic, (kind, command) in UNPACKERS.items():
        if first.startswith(magic):
            raise UserInputError(
                f"{path}: a {kind} archive, which Conclave can't read. Unpack it (`{command} {path.name}`), and give the folder."
            )
    is_tar = first[257:262] == b"ustar" or first.startswith(TAR_MAGICS)
    return is_tar or first.startswith(ZIP_MAGIC) or has_archive_name(path)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(TAR_HEADER)


def list_files(
    root: Path, open_files: contextlib.ExitStack, scratch: Path | None = None, encoding: str | None = None
) -> list[tuple[str, Content]]:
    """List every regular file below a folder, sorted by name, or in an archive, before reading any.

    A compressed tar cannot be listed without reading all of it, so its contents are copied to a temporary file.

    Args:
        root: The folder or the archive.
        open_files: Keeps the archive open. The contents can be read until it is closed.
        scratch: Folder for the temporary file; None for the system's temporary folder.
        encoding: Encoding of names in a ZIP archive that are not UTF-8.

    Returns:
        Names with forward slashes, and contents.

    Raises:
        UserInputError: If the archive or folder is damaged, or not safe to read, or holds nothing but other archives.
    """
    if root.is_dir():
        return list(walk(root))
    with _reading(root):
        is_zip = _first_bytes(root).startswith(ZIP_MAGIC)
        files = _list_zip(root, open_files, encoding) if is_zip else _list_tar(root, open_files, scratch)
    names = [name for name, _ in files if not is_leftover(name)]
    if (inner := [name for name in names if has_archive_name(Path(name))]) and not any(map(is_image, names)):
        raise UserInputError(
            f"{root}: no images, but {first_few(inner)} inside. Unpack it (`{'unzip' if is_zip else 'tar xf'} {root.name}`), and "
            "give one of these, or the folder."
        )
    return files


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged stream raises what its compression raises
        if isinstance(error, UserInputError) or (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS):
            raise
        raise UserInputError(f"{archive}: not a readable archive ({error}). Create it or download it again.") from None


def _list_zip(path: Path, open_files: contextlib.ExitStack, encoding: str | None) -> list[tuple[str, Content]]:
    archive = open_files.enter_context(zipfile.ZipFile(path))
    entries = _zip_entries(archive, path, encoding)
    return [(name, ArchivedFile(path, partial(archive.read, info))) for name, info in entries]


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
    with _tar_stream(path) as archive:
        for name, info in _tar_entries(archive, path):
            content = archive.extractfile(info)
            assert content is not None
            files.append((name, _extent(path, copy.fileno(), copy.tell(), info.size)))
            shutil.copyfileobj(content, copy)
    copy.flush()
    return files


def _tar_stream(path: Path) -> tarfile.TarFile:
    """Open a compressed tar for reading once, whatever its name says of the compression."""
    if not _first_bytes(path).startswith(ZSTD_MAGIC):
        return tarfile.open(path, mode="r|*")
    import pyarrow  # Python's own tarfile reads Zstandard from 3.14 on

    return tarfile.open(fileobj=pyarrow.input_stream(str(path), compression="zstd"), mode="r|")


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


def _zip_entries(archive: zipfile.ZipFile, path: Path, encoding: str | None) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    total, names = 0, _zip_names(archive.infolist(), path, encoding)
    for count, (info, given) in enumerate(zip(archive.infolist(), names, strict=True)):
        name = _safe(given, path, count)
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise UserInputError(f"{path}: {name} is a link; archives of images may hold none. Pack it without links.")
        if info.flag_bits & 1:
            raise UserInputError(f"{path}: is protected by a password. Unpack it, and use the folder.")
        if not info.is_dir():
            total = _bounded(info.file_size, total, name, path)
            yield name, info


def _zip_names(entries: Sequence[zipfile.ZipInfo], path: Path, encoding: str | None) -> list[str]:
    """Return the names of entries. Without the flag of UTF-8, nothing says how a name is encoded, and many tools leave it out.

    Python reads such names as cp437. They are UTF-8 if all of them can be: a few names in GBK are valid UTF-8 by chance. In
    Shift-JIS, the second byte of a character may be a backslash, which may only be taken for a slash after decoding.
    """
    marked = [info.orig_filename if info.flag_bits & UTF8_FLAG else _unicode_path(info) for info in entries]
    unmarked = [_raw_name(info) for info, name in zip(entries, marked, strict=True) if name is None]
    for tried in ("utf-8", *([encoding] if encoding else [])):
        with contextlib.suppress(UnicodeDecodeError):
            decoded = iter([name.decode(tried) for name in unmarked])
            return [next(decoded) if name is None else name for name in marked]
    shown = next(name for name in unmarked if not name.isascii()).decode("ascii", "backslashreplace")
    if encoding:
        raise UserInputError(f"{path}: the name {shown} is not in {encoding}. Name another encoding.")
    raise UserInputError(
        f"{path}: the name {shown} is not UTF-8, and nothing says how it is encoded. Name the encoding, such as gbk, "
        "shift_jis, cp1251 or cp850: `encoding` under `data:`, or `--encoding` of `conclave predict`."
    )


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("cp437")  # as which Python has decoded it


def _unicode_path(info: zipfile.ZipInfo) -> str | None:
    """Return the UTF-8 name in an entry's Info-ZIP Unicode Path field (0x7075), or None without a valid field."""
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(field) > 5 and struct.unpack("<L", field[1:5])[0] == zlib.crc32(_raw_name(info)):
            with contextlib.suppress(UnicodeDecodeError):
                return field[5:].decode("utf-8")
    return None


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
