"""Remember what was drawn for a data source, so that images that are added or removed leave the others in their part.

HOME/splits/KEY.json holds the draws of one data source and seed. Rows are recognised by their content and
their id. A team that shares a split writes it to a table (`conclave split`) and names that in `data.split`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from workers.config.specs import DataSpec
from workers.data.split_draw import NEW
from workers.data.store import Rows, Store
from workers.errors import UserInputError, first_few

COLUMNS = ("path", "content", "split", "fold")
SHARED_PARTS = ("fit", "fuse", "test")
Stages = dict[str, Rows]


def test_stage(spec: DataSpec) -> str:
    """Return the name of the draw of *test*."""
    return f"test {spec.test_fraction:g}"


def fuse_stage(spec: DataSpec) -> str:
    """Return the name of the draw of *fuse*, from the rows that *test* leaves."""
    return f"fuse {spec.fuse_fraction:g}, {test_stage(spec)}"


def fold_stage(spec: DataSpec) -> str:
    """Return the name of the draw of the folds, from the *fit* rows."""
    return f"folds {spec.folds}, {test_stage(spec) if spec.is_out_of_fold else fuse_stage(spec)}"


class SplitHistory(BaseModel):
    """All draws for a data source and a seed.

    Attributes:
        version: Format version.
        ids: The id of each row that was ever drawn.
        contents: The digest of its pixels, hexadecimal.
        stages: The part or fold of each row by draw; `NEW` for a row that was not drawn.
    """

    version: Literal[1] = 1
    ids: list[str] = Field(default_factory=list)
    contents: list[str] = Field(default_factory=list)
    stages: dict[str, list[int]] = Field(default_factory=dict)

    def known(self, store: Store) -> Known:
        """Return what is known of the rows of a store."""
        positions = match_rows(store, self.ids, self.contents)
        values = {name: np.array([*drawn, NEW], dtype=np.int64)[positions] for name, drawn in self.stages.items()}
        return Known(values, new=np.flatnonzero(positions < 0) if self.ids else None)

    def updated(self, store: Store, drawn: Mapping[str, Rows]) -> SplitHistory:
        """Return the history with the draws for a store's rows, (N,) each. Rows that the store lacks stay in it."""
        positions = match_rows(store, self.ids, self.contents)
        ids, contents = list(self.ids), list(self.contents)
        content_of = store.contents
        for row in np.flatnonzero(positions < 0).tolist():
            positions[row] = len(ids)
            ids.append("")
            contents.append("")
        for row, position in enumerate(positions.tolist()):
            ids[position], contents[position] = store.ids[row], content_of[row]
        stages = {}
        for name in {**self.stages, **drawn}:
            values = np.full(len(ids), NEW, dtype=np.int64)
            before = self.stages.get(name, [])
            values[: len(before)] = before
            if name in drawn:
                values[positions] = drawn[name]
            stages[name] = values.tolist()
        return SplitHistory(ids=ids, contents=contents, stages=stages)


@dataclass(frozen=True)
class Known:
    """What is known of the rows of a store before it is split.

    Attributes:
        stages: (N,) the part or fold of each row by draw; `NEW` for a row that was not drawn.
        new: Row numbers of the images that were not seen before; None if none were seen yet.
        is_table: Whether a table says so, which overrides the data set's own parts.
    """

    stages: Stages = field(default_factory=dict)
    new: Rows | None = None
    is_table: bool = False

    def of(self, stage: str, count: int) -> Rows:
        """Return the (count,) values of a draw."""
        return self.stages.get(stage, np.full(count, NEW, dtype=np.int64))


def match_rows(store: Store, ids: Sequence[str], contents: Sequence[str]) -> Rows:
    """Return the position of each row of a store among known rows, or -1.

    A row is known by its id and its content, else by its content, because files are renamed, and at last by its id, because
    images are edited and packed at another size. Each known row stands for one row.
    """
    found = np.full(len(store.ids), -1, dtype=np.int64)
    pairs = list(zip(store.ids, store.contents, strict=True))
    for mine, known in (
        (pairs, list(zip(ids, contents, strict=True))),
        (store.contents, contents),
        (store.ids, ids),
    ):
        taken = set(found.tolist())
        by_key: dict[object, list[int]] = {}
        for position in range(len(known) - 1, -1, -1):
            if position not in taken:
                by_key.setdefault(known[position], []).append(position)
        for row in np.flatnonzero(found < 0).tolist():
            if candidates := by_key.get(mine[row]):
                found[row] = candidates.pop()
    return found


def source_key(spec: DataSpec) -> str:
    """Return a key of the source of a data set: its layout and where it lies."""
    places = [None if place is None else str(place.resolve()) for place in (spec.root, spec.manifest)]
    return hashlib.sha256(json.dumps([spec.dataset, *places]).encode()).hexdigest()[:20]


def history_path(home: Path, spec: DataSpec, seed: int) -> Path:
    """Return the file of the history of a data source and a seed."""
    return home / "splits" / f"{source_key(spec)}-{seed}.json"


def write_table(store: Store, parts: Mapping[str, Rows], folds: Rows) -> str:
    """Return a split as CSV, one line per image: its path, the digest of its pixels, its part and its fold.

    Args:
        store: The packed data.
        parts: Row numbers by part.
        folds: The fold of each *fit* row; -1 without folds.
    """
    part_of, fold_of = np.full(len(store.ids), "", dtype="<U4"), np.full(len(store.ids), -1)
    for part, rows in parts.items():
        part_of[rows] = part
    fold_of[parts["fit"]] = folds
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, content, part, fold in zip(store.ids, store.contents, part_of, fold_of.tolist(), strict=True):
        writer.writerow([name, content, part, "" if fold < 0 else fold])
    return text.getvalue()


def read_table(path: Path, store: Store, spec: DataSpec) -> Known:
    """Return what a split's table says about the rows of a store.

    Raises:
        UserInputError: If the table can't be read, or fits neither the data nor the team file.
    """
    where = f"data.split: {path}"
    try:
        lines = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserInputError(f"{where} can't be read ({error}). `conclave split TEAM --out FILE` writes such a file.") from None
    if not lines or not {"path", "split"} <= lines[0].keys():
        raise UserInputError(f"{where} needs the columns path and split. `conclave split TEAM --out FILE` writes such a file.")
    parts = [str(line["split"]).strip() for line in lines]
    if wrong := [(i + 2, part) for i, part in enumerate(parts) if part not in SHARED_PARTS]:
        raise UserInputError(f"{where}, line {wrong[0][0]}: split is {wrong[0][1]!r}. Use {', '.join(SHARED_PARTS)}.")
    positions = match_rows(store, [str(line["path"]) for line in lines], [str(line.get("content") or "-") for line in lines])
    listed = positions >= 0
    if not listed.any():
        raise UserInputError(f"{where} lists none of the images, such as {first_few(store.ids)}. Is it the split of other data?")
    part_of = np.array([*parts, ""])[positions]

    def values(inside: str) -> Rows:
        return np.where(listed, part_of == inside, NEW).astype(np.int64)

    stages = {test_stage(spec): values("test"), fuse_stage(spec): np.where(part_of == "test", NEW, values("fuse"))}
    if spec.folds:
        stages[fold_stage(spec)] = np.array([*_folds(where, lines, spec.folds), NEW], dtype=np.int64)[positions]
    return Known(stages, np.flatnonzero(~listed), is_table=True)


def _folds(where: str, lines: list[dict[str, str]], count: int) -> list[int]:
    folds = []
    for number, line in enumerate(lines, 2):
        text = str(line.get("fold") or "").strip()
        if text and not (text.isdecimal() and int(text) < count):
            raise UserInputError(
                f"{where}, line {number}: fold is {text!r}, and with data.folds {count} they are 0 to {count - 1}."
            )
        folds.append(int(text) if text else NEW)
    return folds
