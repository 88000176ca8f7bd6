"""Align the members' predictions by row and class name, and refuse mismatches.

Every fusion learns from predictions in this form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from workers.data.splits import Split
from workers.data.store import Store
from workers.errors import ConclaveError
from workers.storage.artifacts import MemberArtifact, class_order
from workers.storage.training_record import TrainingRecord

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Inputs = NDArray[np.floating[Any]]
Computed = TypeVar("Computed")


@dataclass(frozen=True)
class Predictions:
    """Outputs of M members on the same n rows.

    Attributes:
        logits: (M, n, C) float64.
        features: M arrays (n, D_m) float32, in the members' order; may be empty.
        labels: (n,) int64.
        folds: (M, K, n, C) logits of the members' fold trainings on the same rows; NaN for a member without fold trainings, None
            if no member has any.
        student: (n, C) logits of a student, or None.
        groups: (n,) group of each row, such as a patient; None without groups.
    """

    logits: Floats
    features: tuple[Inputs, ...]
    labels: Labels
    folds: Floats | None = None
    student: Floats | None = None
    groups: Labels | None = None
    _computed: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: object, compute: Callable[[], Computed]) -> Computed:
        """Return the result of `compute`, cached by `key`.

        Nested cross-validation refits on parts of *fuse*; fits on out-of-fold predictions alone are the same each time.
        """
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]  # type: ignore[no-any-return]

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """Return the predictions for the rows at these positions."""
        folds = None if self.folds is None else self.folds[:, :, rows]
        student = None if self.student is None else self.student[rows]
        features = tuple(x[rows] for x in self.features)
        groups = None if self.groups is None else self.groups[rows]
        return Predictions(self.logits[:, rows], features, self.labels[rows], folds, student, groups)

    def only(self, members: Sequence[int]) -> Predictions:
        """Return the predictions of the members at these positions."""
        index = list(members)
        folds = None if self.folds is None else self.folds[index]
        features = tuple(self.features[i] for i in index if self.features)
        return Predictions(self.logits[index], features, self.labels, folds, self.student, self.groups)


@dataclass(frozen=True)
class FusionInputs:
    """All data that a fusion may learn from.

    Attributes:
        fuse: Predictions of the full trainings on *fuse*.
        oof: Out-of-fold predictions for all *fit* rows, of the members in `with_oof`; None without fold trainings.
        folds: (n_fit,) the fold of each *fit* row.
        heads: W (C, D) and b (C,) of each member's linear head; empty if a member has no linear head.
        with_oof: Positions of the members that `oof` covers.
        alike: Whether the members' recipes differ only in their seeds.
    """

    fuse: Predictions
    oof: Predictions | None
    folds: Labels
    heads: tuple[tuple[Floats, Floats], ...]
    with_oof: tuple[int, ...] = ()
    alike: bool = True

    def with_fuse(self, rows: NDArray[np.int64]) -> FusionInputs:
        """Return a copy with only these *fuse* rows, for nested cross-validation."""
        return replace(self, fuse=self.fuse.take(rows))

    def only(self, members: Sequence[int]) -> FusionInputs:
        """Return a copy with only these members; they must be the members that `oof` covers."""
        heads = tuple(self.heads[i] for i in members) if self.heads else ()
        return replace(self, fuse=self.fuse.only(members), heads=heads)


@dataclass(frozen=True)
class TeamPredictions:
    """The predictions of a whole team.

    Attributes:
        names: The members, in the order of every first axis.
        classes: The class names, in the order of every last axis.
        inputs: Data that fusions may learn from.
        test: Predictions on *test*.
        fit_rows: (n,) row numbers in the store.
        fuse_rows: (n,) row numbers in the store.
        test_rows: (n,) row numbers in the store.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    inputs: FusionInputs
    test: Predictions
    fit_rows: Labels
    fuse_rows: Labels
    test_rows: Labels


def softmax(logits: Inputs) -> Floats:
    """Return the softmax over the last axis."""
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exp / exp.sum(-1, keepdims=True))


def log_softmax(logits: Inputs) -> Floats:
    """Return the logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def weighted_mean(probabilities: Floats, weights: Floats) -> Floats:
    """Return the weighted mean over members: (M, n, C) and (M,) -> (n, C)."""
    return np.asarray(np.tensordot(weights, probabilities, axes=1))


def load_predictions(
    full: Mapping[str, Path], folds: Mapping[str, Sequence[Path]], store: Store, split: Split, student: Path | None = None
) -> TeamPredictions:
    """Read and align the predictions of every member and of the student.

    Args:
        full: Folder of each member's full training.
        folds: Folders of each member's fold trainings; members without an entry are left out of `oof`.
        store: The packed data.
        split: The split of its rows.
        student: Folder of the student's training, or None.

    Raises:
        ConclaveError: If members don't match each other or the data.
        CorruptFileError: If a file is damaged.
    """
    return _Loader(full, folds, store, split, student).load()


class _Loader:
    """Reads artifacts, and aligns their rows and classes."""

    def __init__(
        self, full: Mapping[str, Path], folds: Mapping[str, Sequence[Path]], store: Store, split: Split, student: Path | None
    ) -> None:
        self.names, self.full, self.folds, self.split, self.student = tuple(full), full, folds, split, student
        self.classes, self.labels, self.groups = store.classes, np.asarray(store.labels), store.groups
        self.records = {name: MemberArtifact(full[name]).manifest() for name in self.names}
        self.first = self.records[self.names[0]]
        for name, record in self.records.items():
            if record.data_digest != self.first.data_digest:
                raise ConclaveError(f"member {name} was trained on different data than {self.names[0]}; they can't be fused.")
        self.class_order = {name: class_order(self.records[name].classes, self.classes, name) for name in self.names}
        self.outputs = {name: MemberArtifact(full[name]).outputs() for name in self.names}
        self.row_numbers = {part: self.outputs[self.names[0]][f"{part}_rows"].numpy() for part in ("fuse", "test")}

    def load(self) -> TeamPredictions:
        heads = [_head(self.full[name], self.class_order[name]) for name in self.names]
        with_oof = [i for i, name in enumerate(self.names) if self.folds.get(name)]
        inputs = FusionInputs(
            self._predictions("fuse"),
            self._out_of_fold([self.names[i] for i in with_oof]),
            self.split.folds,
            tuple(h for h in heads if h is not None) if all(heads) else (),
            tuple(with_oof),
            all(_recipe(record) == _recipe(self.first) for record in self.records.values()),
        )
        fuse_rows, test_rows = self.row_numbers["fuse"], self.row_numbers["test"]
        test = self._predictions("test")
        return TeamPredictions(self.names, tuple(self.classes), inputs, test, self.split.fit, fuse_rows, test_rows)

    def _predictions(self, part: str) -> Predictions:
        """Return the predictions on *fuse* or *test*."""
        rows, logits, features = self.row_numbers[part], [], []
        for name in self.names:
            outputs = self.outputs[name]
            positions = _positions(outputs[f"{part}_rows"].numpy(), rows, name)
            logits.append(outputs[f"{part}_logits"].numpy()[positions][:, self.class_order[name]])
            features.append(outputs[f"{part}_features"].numpy()[positions])
        labels, stacked = self.labels[rows], np.stack(logits).astype(np.float64)
        return Predictions(stacked, tuple(features), labels, self._of_folds(part), self._of_student(part), self._groups_of(rows))

    def _out_of_fold(self, names: Sequence[str]) -> Predictions | None:
        if not names:
            return None
        logits = []
        for name in names:
            parts = [MemberArtifact(folder).outputs() for folder in self.folds[name]]
            rows = np.concatenate([part["oof_rows"].numpy() for part in parts])
            values = np.concatenate([part["oof_logits"].numpy() for part in parts])
            logits.append(values[_positions(rows, self.split.fit, name)][:, self.class_order[name]])
        labels, groups = self.labels[self.split.fit], self._groups_of(self.split.fit)
        return Predictions(np.stack(logits).astype(np.float64), (), labels, groups=groups)

    def _groups_of(self, rows: Labels) -> Labels | None:
        return None if self.groups is None else self.groups[rows]

    def _of_folds(self, part: str) -> Floats | None:
        """Return the fold trainings' logits on *fuse* or *test*, (M, K, n, C)."""
        rows = self.row_numbers[part]
        by_member: dict[str, list[Floats]] = {}
        for name in self.names:
            parts = [MemberArtifact(folder).outputs() for folder in self.folds.get(name, ())]
            if parts:
                order = self.class_order[name]
                by_member[name] = [
                    outputs[f"{part}_logits"].numpy()[_positions(outputs[f"{part}_rows"].numpy(), rows, name)][:, order]
                    for outputs in parts
                ]
        if not by_member:
            return None
        missing = np.full_like(next(iter(by_member.values())), np.nan)
        return np.array([by_member.get(name, missing) for name in self.names], dtype=np.float64)

    def _of_student(self, part: str) -> Floats | None:
        if self.student is None:
            return None
        artifact = MemberArtifact(self.student)
        outputs, order = artifact.outputs(), class_order(artifact.manifest().classes, self.classes, "student")
        positions = _positions(outputs[f"{part}_rows"].numpy(), self.row_numbers[part], "student")
        return np.asarray(outputs[f"{part}_logits"].numpy()[positions][:, order], dtype=np.float64)


def _recipe(record: TrainingRecord) -> dict[str, object]:
    return record.member.recipe_fields("seed")


def _positions(have: Labels, want: Labels, name: str) -> Labels:
    """Return the position of each wanted row among the member's rows."""
    if len(have) != len(want) or not np.array_equal(np.sort(have), np.sort(want)):
        raise ConclaveError(f"member {name} has outputs for different rows than the rest; they can't be fused.")
    by_row = np.argsort(have)
    return np.asarray(by_row[np.searchsorted(have[by_row], want)])


def _head(folder: Path, order: list[int]) -> tuple[Floats, Floats] | None:
    """Return a member's linear head, (C, D) and (C,), with classes in the given order; None without one."""
    weights = MemberArtifact(folder).weights()
    if "head.weight" not in weights or weights["head.weight"].ndim != 2:
        return None
    matrix = weights["head.weight"].double().numpy()
    bias = weights["head.bias"].double().numpy() if "head.bias" in weights else np.zeros(len(matrix))
    return matrix[order], bias[order]
