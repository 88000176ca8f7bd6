"""Images listed in a table: a CSV or Parquet file with a path and a label in each row."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from workers.config.extensions import LAYOUTS
from workers.config.specs import Column, DataSpec
from workers.data.archives import list_files
from workers.data.images import is_image
from workers.data.known_formats import holds_images, items_of_parquet
from workers.data.labels import is_missing
from workers.data.layout import PARTS, Item, Layout
from workers.data.leftovers import is_leftover
from workers.data.tables import PARQUET, Table, read_table
from workers.errors import UserInputError, first_few

REQUIRED_COLUMNS: tuple[Column, ...] = ("path", "label")
COLUMNS: tuple[Column, ...] = (*REQUIRED_COLUMNS, "split", "group", "fold", "weight")
MOST_NAMED, MOST_COLUMNS = 5, 10  # row numbers and columns shown in one message


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
        if self.manifest.suffix.lower() in PARQUET and holds_images(self.manifest):
            name = self.manifest.name
            yield from self.placed(list(items_of_parquet([name], {name: self.manifest})), {})
            return
        root, table = self.root(), read_table(self.manifest, self.spec.encoding)
        files = list_files(root, self.open_files, self.scratch, self.spec.encoding)
        by_name = {unicodedata.normalize("NFC", name): content for name, content in files}
        rows = ManifestRows(self.manifest, table, self.spec, root, by_name, self.notes.append).items()
        named = {row.id for row in rows}
        for name in by_name:
            if name not in named and not is_leftover(name) and self.manifest != root / name:
                self.skipped.add(name)
        if len({row.weight for row in rows}) > 1:
            self.notes.append("the manifest's weights count in training alone: fusions and scores count every row alike")
        parts = sorted({row.part for row in rows if row.part})
        items = [replace(row, content=by_name[row.id]) for row in rows]
        yield from self.placed(items, {part: f"the split {part} of {self.manifest.name}" for part in parts})


@dataclass(frozen=True)
class ManifestRows:
    """The rows of a manifest, checked against its columns and the files.

    Attributes:
        path: The CSV or Parquet file.
        table: Its content.
        spec: The data set, with the file's names of the columns "path", "label", "split", "group", "fold" and "weight".
        root: The folder of the images; paths may start with it. None to check no path.
        files: The images by name.
        note: Called with a sentence for each thing that the user should know.
    """

    path: Path
    table: Table
    spec: DataSpec
    root: Path | None = None
    files: Mapping[str, object] = field(default_factory=dict)
    note: Callable[[str], None] = lambda text: None

    def items(self) -> list[Item]:
        """Return the rows without their images. The id of a row is its path.

        Raises:
            UserInputError: If a column or a value is missing or wrong. The message gives the row numbers.
        """
        names = {column: self.spec.columns.get(column, column) for column in COLUMNS}
        one_hot = self._one_hot_columns(names)
        self._check_columns(names, one_hot)
        values = {column: {n: row.get(name, "") for n, row in self.table.rows} for column, name in names.items()}
        if names["label"] not in self.table.header:
            values["label"] = {n: next(name for name in one_hot if float(row[name])) for n, row in self.table.rows}
            self.note(f"the labels are the one-hot columns {first_few(one_hot)}")
        elif names["label"] in one_hot:
            self.note(
                f"the label column {names['label']} holds only 0 and 1, and {first_few(one_hot)} together look like one-hot "
                "labels: leave `label` out of data.columns to train on them"
            )
        self._refuse("the path is missing", [n for n, text in values["path"].items() if not text])
        splits = {n: text.casefold() for n, text in values["split"].items()}
        unlabelled = self._without_label(values["label"], splits)
        if any(splits.values()):
            self._refuse("the split is missing, while other rows have one", [n for n, split in splits.items() if not split])
        self._refuse("the split is not train, val or test", [n for n, split in splits.items() if split and split not in PARTS])
        trained = {
            n for n, split in splits.items() if PARTS.get(split, "train") == "train"
        }  # only these need a fold and a weight
        self._check_numbers("fold", {n: text for n, text in values["fold"].items() if n in trained})
        self._check_numbers("weight", {n: text for n, text in values["weight"].items() if n in trained})
        kept = [n for n, _ in self.table.rows if n not in unlabelled]
        paths = {n: _normal(values["path"][n] + (self.spec.extension or ""), self.root) for n in kept}
        if self.root is not None:
            self._refuse_missing(paths, values["path"], self.root)
        self._refuse_repeated(paths)
        return [
            Item(
                id=paths[n],
                label=unicodedata.normalize("NFC", values["label"][n]),
                part=PARTS.get(splits[n], ""),
                content=b"",
                group=values["group"][n],
                fold=int(values["fold"][n].removesuffix(".0")) if values["fold"][n] and n in trained else None,
                weight=float(values["weight"][n] or 1) if n in trained else 1.0,
            )
            for n in kept
        ]

    def _one_hot_columns(self, names: Mapping[Column, str]) -> list[str]:
        """Return the columns in which each row has exactly one 1 and else 0, if there are at least two."""
        others = [name for name in self.table.header if name not in {*names.values()} - {names["label"]}]
        numeric = [name for name in others if all(row[name] in ("0", "1", "0.0", "1.0") for _, row in self.table.rows)]
        is_one_hot = all(sum(float(row[name]) for name in numeric) == 1 for _, row in self.table.rows)
        return numeric if len(numeric) > 1 and is_one_hot else []

    def _check_columns(self, names: Mapping[Column, str], one_hot: Sequence[str]) -> None:
        """Raise UserInputError if a column is missing, the first row is no header, or the table has no rows."""
        header, columns = self.table.header, self.spec.columns
        if data := [name for name in header if is_image(name.split()[0] if name.split() else "")]:
            raise UserInputError(
                f"{self.path}: the first row looks like data ({data[0]}). Add a header row with the names of the columns, such "
                "as path,label."
            )
        for column in COLUMNS:
            if names[column] in header or (column == "label" and one_hot and column not in columns):
                continue
            if column in REQUIRED_COLUMNS or column in columns:
                of_paths = self._column_of_paths() if column == "path" else None
                raise UserInputError(
                    f"{self.path}: there is no column {names[column]!r} for the {column}; the columns are "
                    f"{first_few(header, MOST_COLUMNS) or 'none'}. "
                    f"Name the column in the team file: data.columns: {{{column}: {of_paths or 'NAME'}}}."
                )
        if not self.table.rows:
            raise UserInputError(f"{self.path}: there is no row below the names of the columns.")

    def _column_of_paths(self) -> str | None:
        """Return the only column whose first value names a file, with or without its extension; None if it isn't clear."""
        stems = {name.rpartition(".")[0] for name in self.files}
        first = self.table.rows[0][1] if self.table.rows else {}
        named = [name for name, value in first.items() if _normal(value, None) in self.files or value in stems]
        return named[0] if len(named) == 1 else None

    def _without_label(self, labels: Mapping[int, str], splits: Mapping[int, str]) -> set[int]:
        """Return the rows to leave out because they have no label. Raises UserInputError if they may not be left out."""
        marks = self.spec.on_missing_label is not None  # otherwise, a label such as nan is a class, with a warning
        missing = [n for n, text in labels.items() if not text or (marks and is_missing(text))]
        tested = [n for n in missing if PARTS.get(splits[n]) == "test"]
        others = [n for n in missing if PARTS.get(splits[n]) != "test"]
        if self.spec.on_missing_label != "drop":
            self._refuse("the label is missing", others, " `on_missing_label: drop` under `data:` leaves such rows out.")
        elif others:
            self.note(f"left out {len(others):,} rows of {self.path.name} without a label (`on_missing_label: drop`)")
        if tested:
            self.note(f"left out {len(tested):,} test rows of {self.path.name} without a label: nothing can be scored on them")
        return {*missing}

    def _check_numbers(self, column: Column, given: Mapping[int, str]) -> None:
        """Raise UserInputError if a fold or a weight is missing while other rows have one, or is no such number."""
        is_right, what = (_is_whole, "a whole number") if column == "fold" else (_is_weight, "a number of at least 0")
        if any(given.values()):
            self._refuse(f"the {column} is missing, while other rows have one", [n for n, text in given.items() if not text])
        hint = " If these are test rows, say so in a column `split`." if column == "fold" and "-1" in given.values() else ""
        self._refuse(f"the {column} is not {what}", [n for n, text in given.items() if text and not is_right(text)], hint)

    def _refuse_missing(self, paths: Mapping[int, str], written: Mapping[int, str], root: Path) -> None:
        """Raise UserInputError if a path, by the number of its row, is not among the names of the files."""
        missing = {n: path for n, path in paths.items() if path not in self.files}
        if urls := [n for n in missing if "://" in written[n]]:
            self._refuse(f"the path is a URL, such as {written[urls[0]]}", urls, " Download the images, and give their paths.")
        outside = {n: path for n, path in missing.items() if _leads_out(path) and os.path.isfile(root / path)}
        if outside:
            what = f"the file is not below {root}, such as {next(iter(outside.values()))}"
            self._refuse(what, list(outside), " Give data.root a folder that all images are below.")
        if missing:
            number, path = next(iter(missing.items()))
            self._refuse(
                f"the file is not there, such as {written[number]}",
                list(missing),
                _hint(path, self.files, root, len(missing) == len(paths)),
            )

    def _refuse_repeated(self, paths: Mapping[int, str]) -> None:
        """Raise UserInputError if two rows name the same file. The message gives both rows."""
        first: dict[str, int] = {}
        twice = [(first[path], n) for n, path in paths.items() if first.setdefault(path, n) != n]
        if twice:
            shown = first_few([f"{one} and {other}" for one, other in twice], MOST_NAMED)
            raise UserInputError(
                f"{self.path}: rows {shown} name the same file (the header is row 1), such as {paths[twice[0][0]]}. An image has "
                "one row and one label."
            )

    def _refuse(self, what: str, numbers: Sequence[int], hint: str = "") -> None:
        """Raise UserInputError for the rows with these numbers, if any."""
        if numbers:
            rows, shown = "row" if len(numbers) == 1 else "rows", first_few([str(number) for number in numbers], MOST_NAMED)
            raise UserInputError(f"{self.path}: in {rows} {shown}, {what} (the header is row 1).{hint}")


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


def _hint(path: str, names: Mapping[str, object], root: Path, is_every_row: bool) -> str:
    """Return how a path could match a file, as the next sentence of a message; "" without a guess."""
    if longer := next((name for name in names if name.rpartition(".")[0] == path), None):
        advice = (
            f"set `extension: .{longer.rpartition('.')[2]}` under `data:`"
            if is_every_row
            else "the extension belongs to the path"
        )
        return f" There is {longer}: {advice}."
    if other_case := next((name for name in names if name.casefold() == path.casefold()), None):
        return f" There is {other_case}, which is written otherwise."
    parts = path.split("/")
    for start in range(1, len(parts)):
        if (tail := "/".join(parts[start:])) in names:
            before = "/".join(parts[:start])
            return f" There is {tail}: paths count from {root}. Remove {before}/ from the paths, or set data.root to match."
    return ""
