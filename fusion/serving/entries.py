"""List the images to predict: files, folders, archives, and lists of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from workers.data.archives import Content, is_archive, list_files
from workers.data.images import is_image
from workers.data.leftovers import is_leftover
from workers.data.tables import read_table
from workers.errors import UserInputError, first_few

LIST_COLUMNS = ("path", "file", "file_name", "filename", "image")


@dataclass(frozen=True)
class Entry:
    """An image to decode: its file as given, its name within the folder or archive, and its content."""

    file: str
    name: str
    content: Content


def list_entries(
    paths: Sequence[Path], open_files: ExitStack, on_other: Callable[[str], None], encoding: str | None = None
) -> Iterator[Entry]:
    """Yield the images at these paths. Files without an extension count as images: their content tells.

    Args:
        paths: Image files, folders or archives.
        open_files: Keeps archives open.
        on_other: Called with a message for each file in a folder or archive that is no image by its name. It may raise.
        encoding: Encoding of names in ZIP archives that are not UTF-8.

    Raises:
        UserInputError: If a file does not exist, or an archive is damaged.
    """
    for path in paths:
        if path.is_dir() or (path.is_file() and not is_image(path.name) and is_archive(path)):
            for name, content in list_files(path, open_files, None, encoding):
                if is_leftover(name):
                    continue
                if is_image(name) or not PurePosixPath(name).suffix:
                    yield Entry(str(path / name), name, content)
                else:
                    on_other(f"{path / name}: not an image by its name")
        elif path.is_file():
            yield Entry(str(path), path.name, path)
        else:
            raise UserInputError(f"{path}: there is no such file or folder.")


def read_list(path: Path) -> list[Path]:
    """Return the paths in a text file, one on each line, or in the column `path` of a CSV file, relative to the file's folder.

    Raises:
        UserInputError: If the file can't be read, is empty, or is a table without such a column.
    """
    if path.suffix.lower() in (".csv", ".tsv", ".parquet"):
        table = read_table(path)
        column = next((name for name in LIST_COLUMNS if name in table.header), None)
        if column is None and len(table.header) != 1:
            raise UserInputError(f"--list {path}: a column `path` is needed; there are {first_few(table.header)}.")
        listed = [row[column or table.header[0]] for _, row in table.rows]
    else:
        try:
            listed = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserInputError(f"--list {path}: can't be read ({error}).") from None
    if not any(listed):
        raise UserInputError(f"--list {path}: it names no file.")
    return [path.parent / name for name in listed if name]
