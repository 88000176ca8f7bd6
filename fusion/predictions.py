"""Align the members' predictions by row and class name, and refuse mismatches.

Every fusion learns from predictions in this form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from workers.data.splits import Split
from workers.data.store import Store
from workers.errors import ConclaveError
from workers.storage.artifacts import MemberArtifact, class_order
from workers.storage.training_record import TrainingRecord

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Inputs = NDArray[np.floating[Any]]
Computed = TypeVar("Computed")
Outputs = Mapping[str, "Tensor"]
MOST_PARTS = 5  # parts of nested cross-validation


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
        parts: (n,) fold of each row in cross-validation; None to draw folds.
    """

    logits: Floats
    features: tuple[Inputs, ...]
    labels: Labels
    folds: Floats | None = None
    student: Floats | None = None
    groups: Labels | None = None
    parts: Labels | None = None
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
        groups, parts = (None if values is None else values[rows] for values in (self.groups, self.parts))
        return Predictions(self.logits[:, rows], features, self.labels[rows], folds, student, groups, parts)

    def only(self, members: Sequence[int]) -> Predictions:
        """Return the predictions of the members at these positions."""
        index = list(members)
        folds = None if self.folds is None else self.folds[index]
        features = tuple(self.features[i] for i in index if self.features)
        return Predictions(self.logits[index], features, self.labels, folds, self.student, self.groups, self.parts)


@dataclass(frozen=True)
class FusionInputs:
    """All data that a fusion may learn from.

    Attributes:
        fuse: Predictions that fusions are chosen on: of the full trainings on *fuse* or, without such a part, of the fold
            trainings on the *fit* rows that they left out.
        oof: Out-of-fold predictions for all *fit* rows, of the members in `with_oof`; None without fold trainings, and where
            `fuse` holds them.
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
        is_out_of_fold: Whether the fold trainings are judged, because there is no *fuse* part.
        fit_rows: (n,) row numbers in the store.
        fuse_rows: (n,) row numbers in the store, of `inputs.fuse`.
        test_rows: (n,) row numbers in the store.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    inputs: FusionInputs
    test: Predictions
    fit_rows: Labels
    fuse_rows: Labels
    test_rows: Labels
    is_out_of_fold: bool = field(default=False, kw_only=True)

    @property
    def judged_on(self) -> Literal["fuse", "out-of-fold"]:
        """What the rows of `inputs.fuse` are called."""
        return "out-of-fold" if self.is_out_of_fold else "fuse"

    @property
    def of_full_trainings(self) -> tuple[Predictions, Labels]:
        """Predictions of the full trainings on rows that they did not train on, and the rows' numbers."""
        return (self.test, self.test_rows) if self.is_out_of_fold else (self.inputs.fuse, self.fuse_rows)


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


@dataclass(frozen=True)
class TrainingFolders:
    """Folders of finished trainings.

    Attributes:
        full: Folder of each member's full training.
        folds: Folders of each member's fold trainings; members without an entry have none.
        student: Folder of the student's training, or None.
    """

    full: Mapping[str, Path]
    folds: Mapping[str, Sequence[Path]]
    student: Path | None = None


def load_predictions(
    folders: TrainingFolders,
    store: Store,
    split: Split,
    read: Callable[[Path], Outputs] = lambda folder: MemberArtifact(folder).outputs(),
) -> TeamPredictions:
    """Read and align the predictions of every member and of the student.

    Args:
        folders: The trainings.
        store: The packed data.
        split: The split of its rows.
        read: Returns the outputs of the training in a folder.

    Raises:
        ConclaveError: If members don't match each other or the data, or can't be judged without a *fuse* part.
        CorruptFileError: If a file is damaged.
    """
    return _Loader(folders, store, split, read).load()


class _Loader:
    """Reads artifacts, and aligns their rows and classes."""

    def __init__(self, folders: TrainingFolders, store: Store, split: Split, read: Callable[[Path], Outputs]) -> None:
        self.full, self.student, self.split, self.names = folders.full, folders.student, split, tuple(folders.full)
        self.classes, self.labels, self.groups, self.keys = store.classes, np.asarray(store.labels), store.groups, store.keys
        self.records = {name: MemberArtifact(self.full[name]).manifest() for name in self.names}
        self.class_order = {name: class_order(self.records[name].classes, self.classes, name) for name in self.names}
        self.outputs = {name: read(self.full[name]) for name in self.names}
        self.fold_outputs = {name: [read(folder) for folder in folders.folds.get(name, ())] for name in self.names}
        self.student_outputs = None if self.student is None else read(self.student)

    def load(self) -> TeamPredictions:
        split, is_out_of_fold = self.split, not len(self.split.fuse)
        if is_out_of_fold and (without := [name for name in self.names if not self.fold_outputs[name]]):
            raise ConclaveError(f"member {without[0]} has no fold trainings, on which `fuse: out_of_fold` judges.")
        heads = [_head(self.full[name], self.class_order[name]) for name in self.names]
        with_oof = [] if is_out_of_fold else [i for i, name in enumerate(self.names) if self.fold_outputs[name]]
        first = self.records[self.names[0]]
        inputs = FusionInputs(
            self._out_of_fold(self.names) if is_out_of_fold else self._predictions(split.fuse),
            self._out_of_fold([self.names[i] for i in with_oof]) if with_oof else None,
            split.folds,
            tuple(h for h in heads if h is not None) if all(heads) else (),
            tuple(with_oof),
            all(_recipe(record) == _recipe(first) for record in self.records.values()),
        )
        rows = (split.fit, split.fit if is_out_of_fold else split.fuse, split.test)
        return TeamPredictions(
            self.names, tuple(self.classes), inputs, self._predictions(split.test), *rows, is_out_of_fold=is_out_of_fold
        )

    def _predictions(self, rows: Labels) -> Predictions:
        """Return the full trainings' predictions on *fuse* or *test* rows."""
        logits, features = [], []
        for name in self.names:
            outputs = self.outputs[name]
            positions = self._positions(outputs["keys"].numpy(), rows, name)
            logits.append(outputs["logits"].numpy()[positions][:, self.class_order[name]])
            features.append(outputs["features"].numpy()[positions])
        stacked = np.stack(logits).astype(np.float64)
        student = self._of_student(rows)
        return Predictions(stacked, tuple(features), self.labels[rows], self._of_folds(rows), student, self._groups_of(rows))

    def _out_of_fold(self, names: Sequence[str]) -> Predictions:
        """Return the predictions on all *fit* rows, each by the fold training that left it out.

        Where there is no *fuse* part, a bag's judged prediction is that of the one fold training that did not see the row.
        """
        rows, logits, features = self.split.fit, [], []
        for name in names:
            parts = self.fold_outputs[name]
            joined = {key: np.concatenate([part[f"oof_{key}"].numpy() for part in parts]) for key in ("keys", "logits")}
            positions = self._positions(joined["keys"], rows, name)
            logits.append(joined["logits"][positions][:, self.class_order[name]])
            if not len(self.split.fuse) and all("oof_features" in part for part in parts):
                features.append(np.concatenate([part["oof_features"].numpy() for part in parts])[positions])
        stacked = np.stack(logits).astype(np.float64)
        kept = tuple(features) if len(features) == len(names) else ()
        bags = None if len(self.split.fuse) else stacked[:, None]
        return Predictions(stacked, kept, self.labels[rows], bags, groups=self._groups_of(rows), parts=_merged(self.split.folds))

    def _positions(self, have: Labels, rows: Labels, name: str) -> Labels:
        """Return the position of each wanted row among the rows of a member's outputs."""
        want = self.keys[rows]
        by_key = np.argsort(have)
        found = np.searchsorted(have[by_key], want).clip(max=max(len(have) - 1, 0))
        if len(want) and (not len(have) or (have[by_key][found] != want).any()):
            raise ConclaveError(f"member {name} has no outputs for some rows that the others have; they can't be fused.")
        return np.asarray(by_key[found], dtype=np.int64)

    def _groups_of(self, rows: Labels) -> Labels | None:
        return None if self.groups is None else self.groups[rows]

    def _of_folds(self, rows: Labels) -> Floats | None:
        """Return the fold trainings' logits on *fuse* or *test* rows, (M, K, n, C)."""
        by_member = {
            name: [
                outputs["logits"].numpy()[self._positions(outputs["keys"].numpy(), rows, name)][:, self.class_order[name]]
                for outputs in self.fold_outputs[name]
            ]
            for name in self.names
            if self.fold_outputs[name]
        }
        if not by_member:
            return None
        missing = np.full_like(next(iter(by_member.values())), np.nan)
        return np.array([by_member.get(name, missing) for name in self.names], dtype=np.float64)

    def _of_student(self, rows: Labels) -> Floats | None:
        if self.student is None or self.student_outputs is None:
            return None
        order = class_order(MemberArtifact(self.student).manifest().classes, self.classes, "student")
        positions = self._positions(self.student_outputs["keys"].numpy(), rows, "student")
        return np.asarray(self.student_outputs["logits"].numpy()[positions][:, order], dtype=np.float64)


def _merged(folds: Labels) -> Labels:
    """Return the folds joined to at most `MOST_PARTS`, because nested cross-validation fits a head for each pair of them."""
    count = int(folds.max(initial=0)) + 1
    return folds * MOST_PARTS // count if count > MOST_PARTS else folds


def _recipe(record: TrainingRecord) -> dict[str, object]:
    return record.member.recipe_fields("seed")


def _head(folder: Path, order: list[int]) -> tuple[Floats, Floats] | None:
    """Return a member's linear head, (C, D) and (C,), with classes in the given order; None without one."""
    weights = MemberArtifact(folder).weights()
    if "head.weight" not in weights or weights["head.weight"].ndim != 2:
        return None
    matrix = weights["head.weight"].double().numpy()
    bias = weights["head.bias"].double().numpy() if "head.bias" in weights else np.zeros(len(matrix))
    return matrix[order], bias[order]
