"""Images listed in a table: a CSV or Parquet file with a path and a label in each row."""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from workers.config.extensions import LAYOUTS
from workers.config.specs import Column
from workers.data.archives import list_files
from workers.data.class_folders import PARTS
from workers.data.layout import Item, Layout
from workers.data.leftovers import is_leftover
from workers.data.tables import Table, read_table
from workers.errors import UserInputError, first_few

REQUIRED_COLUMNS: tuple[Column, ...] = ("path", "label")
COLUMNS: tuple[Column, ...] = (*REQUIRED_COLUMNS, "split", "group", "fold", "weight")
MOST_NAMED = 5  # row numbers shown in one message


@LAYOUTS.register
class Manifest(Layout):
    """Images below data.root, listed with their labels in the CSV or Parquet file data.manifest."""

    needs_root = False

    def root(self) -> Path:
        """Return the folder or the archive of the images: by default, the folder of the manifest."""
        return super().root() if self.spec.root else self.manifest.parent

    @property
    def manifest(self) -> Path:
        """Path of the table. Raises UserInputError if the team file does not set it, or the file is missing."""
        if self.spec.manifest is None:
            raise UserInputError("data.manifest is needed with `dataset: manifest`: a CSV or Parquet file with path and label.")
        if not self.spec.manifest.is_file():
            raise UserInputError(f"data.manifest: {self.spec.manifest} is not there.")
        return self.spec.manifest

    def fingerprint(self) -> list[object]:
        """Return values that identify the source: those of the images, then those of the table."""
        stat = self.manifest.stat()
        table = [str(self.manifest), stat.st_size, stat.st_mtime_ns, sorted(self.spec.columns.items())]
        return [*super().fingerprint(), *table]

    def items(self) -> Iterator[Item]:
        """Yield the images in the order of the table."""
        root, table = self.root(), read_table(self.manifest)
        rows = check_rows(self.manifest, table, self.spec.columns, root)
        files = list_files(root, self.open_files, self.scratch)
        by_name = {unicodedata.normalize("NFC", name): content for name, content in files}
        paths = {number: row.id for (number, _), row in zip(table.rows, rows, strict=True)}
        _refuse_missing(self.manifest, paths, by_name, root)
        named = set(paths.values())
        for name in by_name:
            if name not in named and not is_leftover(name) and self.manifest != root / name:
                self.skipped.add(name)
        if len({row.weight for row in rows}) > 1:
            self.notes.append("the manifest's weights count in training alone: fusions and scores count every row alike")
        parts = sorted({row.part for row in rows if row.part})
        items = [replace(row, content=by_name[row.id]) for row in rows]
        yield from self.placed(items, {part: f"the split {part} of {self.manifest.name}" for part in parts})


def check_rows(manifest: Path, table: Table, columns: Mapping[Column, str], root: Path | None = None) -> list[Item]:
    """Check and return the rows of a manifest, without their images. The id of a row is its path.

    Args:
        manifest: The CSV or Parquet file.
        table: Its content.
        columns: The file's names of the columns "path", "label", "split", "group", "fold" and "weight", if they differ.
        root: The folder of the images; paths may start with it.

    Raises:
        UserInputError: If a column or a value is missing or wrong. The message gives the row numbers.
    """
    names = {column: columns.get(column, column) for column in COLUMNS}
    _check_columns(manifest, table, names, columns)
    values = {column: {n: row.get(name, "") for n, row in table.rows} for column, name in names.items()}
    for column in REQUIRED_COLUMNS:
        _refuse(manifest, f"the {column} is missing", [n for n, text in values[column].items() if not text])
    splits = {n: text.casefold() for n, text in values["split"].items()}
    trained = [n for n, split in splits.items() if PARTS.get(split, "train") == "train"]  # only these need a fold and a weight
    for column, needing in (("split", list(splits)), ("fold", trained), ("weight", trained)):
        given = values[column]
        if any(given.values()):
            _refuse(manifest, f"the {column} is missing, while other rows have one", [n for n in needing if not given[n]])
    _refuse(manifest, "the split is not train, val or test", [n for n, s in splits.items() if s and s not in PARTS])
    _refuse(manifest, "the fold is no whole number", [n for n, f in values["fold"].items() if f and not _is_whole(f)])
    wrong = [n for n, weight in values["weight"].items() if weight and not _is_weight(weight)]
    _refuse(manifest, "the weight is no number of at least 0", wrong)
    rows = [
        Item(
            id=_normal(values["path"][n], root),
            label=unicodedata.normalize("NFC", values["label"][n]),
            part=PARTS.get(splits[n], ""),
            content=b"",
            group=values["group"][n],
            fold=int(values["fold"][n].removesuffix(".0")) if values["fold"][n] else None,
            weight=float(values["weight"][n] or 1),
        )
        for n, _ in table.rows
    ]
    counts = Counter(row.id for row in rows)
    repeated = [n for (n, _), row in zip(table.rows, rows, strict=True) if counts[row.id] > 1]
    _refuse(manifest, "the file is named by another row too", repeated)
    return rows


def _check_columns(manifest: Path, table: Table, names: Mapping[Column, str], columns: Mapping[Column, str]) -> None:
    """Raise UserInputError if a column is missing, or the table has no rows."""
    there = ", ".join(table.header) or "none"
    for column in COLUMNS:
        if names[column] not in table.header and (column in REQUIRED_COLUMNS or column in columns):
            raise UserInputError(
                f"{manifest}: there is no column {names[column]!r} for the {column}; the columns are {there}. "
                f"Name the column in the team file: data.columns: {{{column}: NAME}}."
            )
    if not table.rows:
        raise UserInputError(f"{manifest}: there is no row below the names of the columns.")


def _is_weight(number: str) -> bool:
    try:
        return 0 <= float(number) < math.inf
    except ValueError:
        return False


def _is_whole(number: str) -> bool:
    return number.removesuffix(".0").isdecimal()


def _normal(path: str, root: Path | None) -> str:
    """Normalize a path: forward slashes, no root, Unicode NFC."""
    written = PurePosixPath(os.path.normpath(path.replace("\\", "/")))
    if root is not None and written.is_relative_to(root):
        written = written.relative_to(root)
    return unicodedata.normalize("NFC", str(written))


def _leads_out(path: str) -> bool:
    """Return whether a normalized path leads out of the image folder."""
    return path.startswith("../") or os.path.isabs(path)


def _refuse_missing(manifest: Path, paths: Mapping[int, str], names: Mapping[str, object], root: Path) -> None:
    """Raise UserInputError if a path, by the number of its row, is not among the names of the files."""
    missing = {n: path for n, path in paths.items() if path not in names}
    outside = {n: path for n, path in missing.items() if _leads_out(path) and os.path.isfile(root / path)}
    if outside:
        what = f"the file is not below {root}, such as {next(iter(outside.values()))}"
        _refuse(manifest, what, list(outside), " Give data.root a folder that all images are below.")
    if missing:
        first = next(iter(missing.values()))
        longer = next((name for name in names if name.rpartition(".")[0] == first), None)
        other_case = next((name for name in names if name.casefold() == first.casefold()), None)
        hint = f" There is {longer}: the extension belongs to the path." if longer else ""
        hint = f" There is {other_case}, which is written otherwise." if other_case else hint
        _refuse(manifest, f"the file is not there, such as {first}", list(missing), hint)


def _refuse(manifest: Path, what: str, numbers: Sequence[int], hint: str = "") -> None:
    """Raise UserInputError for the rows with these numbers, if any."""
    if numbers:
        rows, shown = "row" if len(numbers) == 1 else "rows", first_few([str(number) for number in numbers], MOST_NAMED)
        raise UserInputError(f"{manifest}: in {rows} {shown}, {what} (the header is row 1).{hint}")
