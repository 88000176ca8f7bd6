"""Images listed in a table: a CSV or Parquet file with a path and a label in each row."""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from workers.config.extensions import LAYOUTS
from workers.config.specs import Column
from workers.data.archives import list_files
from workers.data.class_folders import PARTS
from workers.data.layout import Item, Layout
from workers.data.leftovers import is_leftover
from workers.data.tables import Table, read_table
from workers.errors import UserInputError

REQUIRED_COLUMNS: tuple[Column, ...] = ("path", "label")
COLUMNS: tuple[Column, ...] = (*REQUIRED_COLUMNS, "split", "group", "fold", "weight")
MOST_NAMED = 5  # row numbers shown in one message


@dataclass(frozen=True)
class Row:
    """A row of a manifest.

    Attributes:
        number: Line in a CSV file, counted from 1 at the header row; counted the same way in a Parquet file.
        path: Path of the image file, with forward slashes.
        label: Class name.
        part: "train", "val", "test", or "" if the manifest has no splits.
        group: Group that no split may divide; "" for none.
        fold: Fold index, or None.
        weight: Weight of its loss in training.
    """

    number: int
    path: str
    label: str
    part: str = ""
    group: str = ""
    fold: int | None = None
    weight: float = 1.0


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
        """Yield the images in the order of the table; *val* stands in for a missing *test*."""
        rows = check_rows(self.manifest, read_table(self.manifest), self.spec.columns, self.root())
        files = list_files(self.root(), self.open_files, self.scratch)
        by_name = {unicodedata.normalize("NFC", name): content for name, content in files}
        _refuse_missing(self.manifest, rows, by_name, self.root())
        named = {row.path for row in rows}
        for name in by_name:
            if name not in named and not is_leftover(name) and self.manifest != self.root() / name:
                self.skipped.add(name)
        if len({row.weight for row in rows}) > 1:
            self.notes.append("the manifest's weights count in training alone: fusions and scores count every row alike")
        counts = Counter(row.part for row in rows)
        becomes = {part: part for part in counts}
        if counts["val"]:
            becomes["val"] = self.place_validation(counts["test"] > 0, f"the split val ({counts['val']:,} rows)")
        self.origins = {becomes[part]: f"{self.manifest.name}, split {part}" for part in becomes if part and becomes[part]}
        kept = [row for row in rows if not row.part or becomes[row.part]]
        self.expected = len(kept)
        for row in kept:
            yield Item(row.path, row.label, becomes[row.part], by_name[row.path], row.group, row.fold, row.weight)


def check_rows(manifest: Path, table: Table, columns: Mapping[Column, str], root: Path | None = None) -> list[Row]:
    """Check and return the rows of a manifest.

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
        Row(
            number=n,
            path=_normal(values["path"][n], root),
            label=unicodedata.normalize("NFC", values["label"][n]),
            part=PARTS.get(splits[n], ""),
            group=values["group"][n],
            fold=int(values["fold"][n].removesuffix(".0")) if values["fold"][n] else None,
            weight=float(values["weight"][n] or 1),
        )
        for n, _ in table.rows
    ]
    counts = Counter(row.path for row in rows)
    _refuse(manifest, "the file is named by another row too", [row.number for row in rows if counts[row.path] > 1])
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


def _refuse_missing(manifest: Path, rows: Sequence[Row], names: Mapping[str, object], root: Path) -> None:
    missing = [row for row in rows if row.path not in names]
    if not missing:
        return
    stems: dict[str, str] = {}
    for name in names:
        stems.setdefault(name.rpartition(".")[0], name)
    outside = [row for row in missing if _leads_out(row.path) and os.path.isfile(root / row.path)]
    if outside:
        what = f"the file is not below {root}, such as {outside[0].path}"
        _refuse(manifest, what, [row.number for row in outside], " Give data.root a folder that all images are below.")
    numbers, first = [row.number for row in missing], missing[0].path
    other_case = {name.casefold(): name for name in names}.get(first.casefold())
    hint = f" There is {stems[first]}: the extension belongs to the path." if first in stems else ""
    hint = f" There is {other_case}, which is written otherwise." if other_case else hint
    _refuse(manifest, f"the file is not there, such as {first}", numbers, hint)


def _refuse(manifest: Path, what: str, numbers: Sequence[int], hint: str = "") -> None:
    """Raise UserInputError for the rows with these numbers, if any."""
    if numbers:
        shown, more = ", ".join(map(str, numbers[:MOST_NAMED])), ""
        if len(numbers) > MOST_NAMED:
            more = f" and {len(numbers) - MOST_NAMED:,} more"
        rows = "row" if len(numbers) == 1 else "rows"
        raise UserInputError(f"{manifest}: in {rows} {shown}{more}, {what} (the header is row 1).{hint}")
