"""Read a CSV or Parquet file as text with row numbers, rejecting ambiguous tables."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from workers.errors import UserInputError

PARQUET = (".parquet", ".pq")
DELIMITERS = ",;\t"
LONGEST_FIELD = 1 << 30


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: Names of the columns.
        rows: The number of each row, and its values by column. The header row is number 1; a CSV row has the number of its first
            line.
        delimiter: The delimiter of a CSV file.
    """

    header: list[str]
    rows: list[tuple[int, dict[str, str]]]
    delimiter: str = ","


def read_table(path: Path, encoding: str | None = None, content: bytes | None = None) -> Table:
    """Read a table. Values are stripped text, and "" if missing.

    Args:
        path: The file.
        encoding: Encoding of a CSV file that is neither UTF-8 nor marked as UTF-16.
        content: The file's content, if it is not on disk.

    Raises:
        UserInputError: If the file is missing or not readable, or its rows do not fit its columns.
    """
    try:
        is_parquet = path.suffix.lower() in PARQUET
        table = _parquet(path) if is_parquet else _csv(path, path.read_bytes() if content is None else content, encoding)
    except OSError as error:
        raise UserInputError(f"{path}: can't be read ({error.strerror}).") from None
    if twice := [name for name, count in Counter(table.header).items() if count > 1]:
        raise UserInputError(f"{path}: the column {twice[0]!r} is there twice. Keep one of the two.")
    return table


def _csv(path: Path, content: bytes, encoding: str | None) -> Table:
    text = _decoded(path, content, encoding)
    first = text.partition("\n")[0].strip()
    is_declared = first.casefold().startswith("sep=") and len(first) == len("sep=") + 1  # as Excel does
    delimiter = first[-1] if is_declared else max(DELIMITERS, key=first.count)
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    header: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    begins = 1
    try:
        for values in reader:
            number, begins = begins, reader.line_num + 1
            if not any(value.strip() for value in values) or (is_declared and number == 1):
                continue
            if not header:
                header = [value.strip() for value in values]
                continue
            if len(values) > len(header) and any(value.strip() for value in values[len(header) :]):
                raise UserInputError(
                    f"{path}: row {number} has {len(values)} fields, and there are {len(header)} columns. Put quotes around a "
                    f"field that holds a {delimiter!r}."
                )
            filled = [*(value.strip() for value in values), *[""] * len(header)]
            rows.append((number, dict(zip(header, filled, strict=False))))
    except csv.Error as error:
        raise UserInputError(f"{path}: row {begins} is no valid CSV ({error}). A quote may be open.") from None
    if header.count("") > 1 and not any(row[""] for _, row in rows):  # as Excel writes them
        header = [name for name in header if name]
    return Table(header, rows, delimiter)


def _decoded(path: Path, content: bytes, encoding: str | None) -> str:
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for tried in ("utf-16",) if is_utf16 else ("utf-8-sig", *([encoding] if encoding else [])):
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(tried)
    raise UserInputError(
        f"{path}: the text is not UTF-8{f', nor {encoding}' if encoding else ''}. Save the table as CSV in UTF-8, or name its "
        "encoding as `encoding` under `data:`, such as cp1252 for Excel in Western Europe."
    )


def _parquet(path: Path) -> Table:
    from pyarrow import ArrowException, parquet

    try:
        content = parquet.read_table(path)
    except (ArrowException, ValueError) as error:
        raise UserInputError(f"{path}: not a readable Parquet file ({type(error).__name__}).") from None
    header = [str(name) for name in content.column_names]
    columns = [[_text(path, name, value) for value in content.column(i).to_pylist()] for i, name in enumerate(header)]
    return Table(
        header, [(number, dict(zip(header, row, strict=True))) for number, row in enumerate(zip(*columns, strict=True), 2)]
    )


def _text(path: Path, name: str, value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # as a CSV file would have it
    if isinstance(value, list | dict):
        raise UserInputError(f"{path}: the column {name!r} holds lists or structures instead of text or numbers.")
    return str(value).strip()
