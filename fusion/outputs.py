"""Align members' outputs by row and class name; reject mismatches. The one form that every fusion learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.artifact import MemberArtifact, class_order
from workers.errors import ConclaveError
from workers.spec import NO_RECIPE

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Inputs = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Table:
    """Outputs of M members on the same n rows: logits (M, n, C) float64, features M x (n, D_m) float32, labels (n,).

    `folds` (M, K, n, C) are the logits of the members' fold fits on the same rows, NaN for a member that has none of them;
    None where no member has. `student` (n, C) are a student's logits, where there is one.
    """

    logits: Floats
    features: tuple[Inputs, ...]
    labels: Labels
    folds: Floats | None = None
    student: Floats | None = None

    def take(self, rows: NDArray[np.int64]) -> Table:
        folds = None if self.folds is None else self.folds[:, :, rows]
        student = None if self.student is None else self.student[rows]
        features = tuple(x[rows] for x in self.features)
        return Table(self.logits[:, rows], features, self.labels[rows], folds, student)

    def only(self, members: Sequence[int]) -> Table:
        index = list(members)
        folds = None if self.folds is None else self.folds[index]
        features = tuple(self.features[i] for i in index if self.features)
        return Table(self.logits[index], features, self.labels, folds, self.student)


@dataclass(frozen=True)
class Evidence:
    """What a fusion may learn from: *fuse* outputs of the full fits, OOF outputs, and the members' linear heads."""

    fuse: Table
    oof: Table | None
    folds: Labels
    heads: tuple[tuple[Floats, Floats], ...]  # (W (C, D), b (C,)) a member; empty where one has no Linear head
    with_oof: tuple[int, ...] = ()  # the members that `oof` covers
    alike: bool = True  # whether the members' recipes differ in their seeds alone

    def with_fuse(self, rows: NDArray[np.int64]) -> Evidence:
        """The same with some of the *fuse* rows only: what nested cross-validation refits on."""
        return replace(self, fuse=self.fuse.take(rows))

    def only(self, members: Sequence[int]) -> Evidence:
        """The same with some members only; `oof` covers exactly these already."""
        heads = tuple(self.heads[i] for i in members) if self.heads else ()
        return replace(self, fuse=self.fuse.only(members), heads=heads)


@dataclass(frozen=True)
class Gathered:
    """A whole team's outputs: `names` in the order of every first axis, and the rows' numbers in the store."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    evidence: Evidence
    test: Table
    fit_rows: Labels
    fuse_rows: Labels
    test_rows: Labels


def softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exp / exp.sum(-1, keepdims=True))


def log_softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def gather(
    full: Mapping[str, Path],
    folds: Mapping[str, Sequence[Path]],
    classes: Sequence[str],
    labels: Labels,
    fit_folds: Labels,
    fit_rows: Labels,
    student: Path | None = None,
) -> Gathered:
    """Read the artifacts (one folder a fit) of every member, and of the student. `labels` of all rows count `classes`.

    `oof` covers the members that have fold fits in `folds`.
    Raises ConclaveError where members don't match, Corrupt where a
    file is damaged.
    """
    names = tuple(full)
    records = {name: MemberArtifact(full[name]).manifest() for name in names}
    first = records[names[0]]
    for name in names:
        if records[name]["data_digest"] != first["data_digest"]:
            raise ConclaveError(f"member {name} was trained on other data than {names[0]}; they can't be fused.")
    order = {name: class_order(records[name]["classes"], classes, name) for name in names}
    outputs = {name: MemberArtifact(full[name]).outputs() for name in names}
    rows = {part: outputs[names[0]][f"{part}_rows"].numpy() for part in ("fuse", "test")}
    tables = {}
    for part in ("fuse", "test"):
        logits, features = [], []
        for name in names:
            at = _positions(outputs[name][f"{part}_rows"].numpy(), rows[part], name)
            logits.append(outputs[name][f"{part}_logits"].numpy()[at][:, order[name]])
            features.append(outputs[name][f"{part}_features"].numpy()[at])
        of_folds = _of_folds(names, folds, part, rows[part], order)
        distilled = None if student is None else _of_student(student, part, rows[part], classes)
        tables[part] = Table(np.stack(logits).astype(np.float64), tuple(features), labels[rows[part]], of_folds, distilled)
    heads = [_head(full[name], order[name]) for name in names]
    with_oof = [i for i, name in enumerate(names) if folds.get(name)]
    evidence = Evidence(
        tables["fuse"],
        _oof([names[i] for i in with_oof], folds, order, labels, fit_rows),
        fit_folds,
        tuple(h for h in heads if h is not None) if all(heads) else (),
        tuple(with_oof),
        all(_recipe(records[name]) == _recipe(first) for name in names),
    )
    return Gathered(names, tuple(classes), evidence, tables["test"], fit_rows, rows["fuse"], rows["test"])


def _recipe(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record["member"].items() if k not in (*NO_RECIPE, "seed")}


def _positions(have: Labels, want: Labels, name: str) -> Labels:
    """Where each wanted row stands among those that the member has."""
    if len(have) != len(want) or not np.array_equal(np.sort(have), np.sort(want)):
        raise ConclaveError(f"member {name} has outputs for other rows than the rest; they can't be fused.")
    by_row = np.argsort(have)
    return np.asarray(by_row[np.searchsorted(have[by_row], want)])


def _oof(
    names: Sequence[str],
    folds: Mapping[str, Sequence[Path]],
    order: Mapping[str, list[int]],
    labels: Labels,
    fit_rows: Labels,
) -> Table | None:
    if not names:
        return None
    logits = []
    for name in names:
        parts = [MemberArtifact(folder).outputs() for folder in folds[name]]
        rows = np.concatenate([part["oof_rows"].numpy() for part in parts])
        values = np.concatenate([part["oof_logits"].numpy() for part in parts])
        logits.append(values[_positions(rows, fit_rows, name)][:, order[name]])
    return Table(np.stack(logits).astype(np.float64), (), labels[fit_rows])


def _of_folds(
    names: Sequence[str], folds: Mapping[str, Sequence[Path]], part: str, rows: Labels, order: Mapping[str, list[int]]
) -> Floats | None:
    """(M, K, n, C): the fold fits' logits on *fuse* or *test* rows. Artifacts of early versions don't have them."""
    found: dict[str, list[Floats]] = {}
    for name in names:
        parts = [MemberArtifact(folder).outputs() for folder in folds.get(name, ())]
        if parts and all(f"{part}_logits" in outputs for outputs in parts):
            at = [_positions(outputs[f"{part}_rows"].numpy(), rows, name) for outputs in parts]
            found[name] = [o[f"{part}_logits"].numpy()[a][:, order[name]] for o, a in zip(parts, at, strict=True)]
    if not found:
        return None
    missing = np.full_like(next(iter(found.values())), np.nan)
    return np.array([found.get(name, missing) for name in names], dtype=np.float64)


def _of_student(folder: Path, part: str, rows: Labels, classes: Sequence[str]) -> Floats:
    artifact = MemberArtifact(folder)
    outputs, order = artifact.outputs(), class_order(artifact.manifest()["classes"], classes, "student")
    at = _positions(outputs[f"{part}_rows"].numpy(), rows, "student")
    return np.asarray(outputs[f"{part}_logits"].numpy()[at][:, order], dtype=np.float64)


def _head(folder: Path, order: list[int]) -> tuple[Floats, Floats] | None:
    weights = MemberArtifact(folder).weights()
    if "head.weight" not in weights or weights["head.weight"].ndim != 2:
        return None
    matrix = weights["head.weight"].double().numpy()
    bias = weights["head.bias"].double().numpy() if "head.bias" in weights else np.zeros(len(matrix))
    return matrix[order], bias[order]
