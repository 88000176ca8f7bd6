"""Read a CSV or Parquet file as text with row numbers, rejecting ambiguous tables."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from workers.errors import UserInputError

DELIMITERS = ",;\t"
LONGEST_FIELD = 1 << 30


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: Names of the columns.
        rows: The number of each row, and its values by column. The header row is number 1; a CSV row has the number of its first
            line.
    """

    header: list[str]
    rows: list[tuple[int, dict[str, str]]]


def read_table(path: Path) -> Table:
    """Read a table. Values are stripped text, and "" if missing.

    Raises:
        UserInputError: If the file is missing or not readable, or its rows do not fit its columns.
    """
    try:
        table = _parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _csv(path)
    except OSError as error:
        raise UserInputError(f"{path}: can't be read ({error.strerror}).") from None
    if twice := [name for name, count in Counter(table.header).items() if count > 1]:
        raise UserInputError(f"{path}: the column {twice[0]!r} is there twice. Keep one of the two.")
    return table


def _csv(path: Path) -> Table:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserInputError(f"{path}: not UTF-8 text. Save the table as CSV in UTF-8.") from None
    delimiter = max(DELIMITERS, key=text.partition("\n")[0].count)
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    header: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    begins = 1
    try:
        for values in reader:
            number, begins = begins, reader.line_num + 1
            if not any(value.strip() for value in values):
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
    return Table(header, rows)


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
