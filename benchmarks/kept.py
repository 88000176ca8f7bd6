"""What a table keeps of its fits, small enough to commit, and what the fusions read of it.

A fit's file holds float16 logits on *fuse*, on *test* and, of a fold fit, on the rows held out from it; and the record of its
training. `rows.npz` holds labels, classes and the split, for all of them. Features are too large to keep, so `concat.npz` holds
the probabilities of the concatenation head, which needs them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion.predictions import Floats, FusionInputs, Labels, Predictions, TeamPredictions
from fusion.selection.costs import TrainingCost
from orchestrator.config.team import Team
from orchestrator.planning.plan import PlannedMember
from workers.config.job import Job
from workers.config.specs import MemberRecord
from workers.data.splits import Split
from workers.data.store import Store

BYTES = ".bytes"  # behind the name of an array of float16 whose bytes were sorted


def save_small(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz that is as small as it can be, in a repository with a limit; `load_small` reads it.

    It is packed with LZMA, and of numbers in float16 all first bytes come before all second ones: 10 % smaller than usual.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, values in arrays.items():
            content, array = io.BytesIO(), np.asarray(values)
            is_half = array.dtype == np.float16
            if is_half:
                array = np.ascontiguousarray(np.moveaxis(np.ascontiguousarray(array)[..., None].view(np.uint8), -1, 0))
            np.save(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}{BYTES if is_half else ''}.npy"), content.getvalue(), zipfile.ZIP_LZMA)


def load_small(path: Path) -> dict[str, Any]:
    """Return the arrays of a file that `save_small` wrote, by name."""
    with np.load(path) as file:
        arrays = dict(file.items())
    for name in [name for name in arrays if name.endswith(BYTES)]:
        parts = np.moveaxis(arrays.pop(name), 0, -1)
        arrays[name.removesuffix(BYTES)] = np.ascontiguousarray(parts).view(np.float16)[..., 0]
    return arrays


@dataclass(frozen=True)
class KeptFit:
    """One fit's file, as it is read."""

    path: Path

    @property
    def is_there(self) -> bool:
        return self.path.is_file()

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(str(self["record"]))  # type: ignore[no-any-return]

    @property
    def epochs(self) -> int:
        return len(self.record["history"])

    def __getitem__(self, name: str) -> Any:
        return load_small(self.path)[name]

    def logits(self, part: str) -> Floats:
        return self[f"{part}_logits"].astype(np.float64)  # type: ignore[no-any-return]

    def member(self) -> MemberRecord:
        return MemberRecord.model_validate_json(json.dumps(self.record["member"]))

    def recipe(self) -> dict[str, object]:
        return self.member().recipe_fields("seed")


@dataclass(frozen=True)
class KeptFits:
    """A table's folder of them."""

    folder: Path

    def of(self, label: str) -> KeptFit:
        return KeptFit(self.folder / f"{label.replace(' ', '-')}.npz")

    def has(self, planned: PlannedMember) -> bool:
        stored = self.of(planned.label)
        return stored.is_there and stored.record["signature"] == planned.signature

    def keep(self, planned: PlannedMember, parts: Split) -> None:
        artifact, job = planned.artifact, planned.job
        outputs = artifact.outputs()
        arrays: dict[str, Any] = {"record": artifact.manifest().model_dump_json()}
        keys, fused = Store(job.store).keys, len(parts.fuse)
        assert np.array_equal(outputs["keys"].numpy(), keys[np.concatenate([parts.fuse, parts.test])])
        logits = outputs["logits"].numpy().astype(np.float16)
        arrays |= {"fuse_logits": logits[:fused], "test_logits": logits[fused:]}
        if job.fold is not None:
            assert np.array_equal(outputs["oof_keys"].numpy(), keys[parts.fit[parts.folds == job.fold]])
            arrays["oof_logits"] = outputs["oof_logits"].numpy().astype(np.float16)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.of(planned.label).path
        partial = path.with_name(f".{path.name}")
        save_small(partial, arrays)
        partial.replace(path)
        self._keep_rows(job, parts)

    def _keep_rows(self, job: Job, parts: Split) -> None:
        store = Store(job.store)
        labels = np.asarray(store.labels).astype(np.uint8)
        rows = {name: getattr(parts, name).astype(np.int32) for name in ("fit", "fuse", "test")}
        folds = parts.folds.astype(np.int8)
        save_small(self.folder / "rows.npz", {"labels": labels, "folds": folds, "classes": store.classes, **rows})

    def gathered(self, team: Team, per_image: Mapping[str, float]) -> tuple[TeamPredictions, dict[str, TrainingCost]]:
        """Members whose full fit is kept; those with all fold fits have OOF outputs. `per_image`: each training's seconds."""
        rows = load_small(self.folder / "rows.npz")
        labels, folds = rows["labels"].astype(np.int64), rows["folds"].astype(np.int64)
        full = {m.name: self.of(m.name) for m in team.members if self.of(m.name).is_there}
        fold_fits = self._fold_fits(tuple(full), team.data.folds)
        student = self.of("student") if self.of("student").is_there else None

        def table(part: str) -> Predictions:
            logits = np.stack([fit.logits(part) for fit in full.values()])
            missing = np.full((team.data.folds, *logits.shape[1:]), np.nan)
            every = [np.stack([f.logits(part) for f in fold_fits[n]]) if n in fold_fits else missing for n in full]
            taught = None if student is None else student.logits(part)
            return Predictions(logits, (), labels[rows[part]], np.stack(every) if fold_fits else None, taught)

        recipes = [fit.recipe() for fit in full.values()]
        inputs = FusionInputs(
            table("fuse"),
            _oof(list(fold_fits.values()), folds, labels[rows["fit"]]),
            folds,
            (),
            tuple(i for i, name in enumerate(full) if name in fold_fits),
            all(recipe == recipes[0] for recipe in recipes),
        )
        seconds = {name: _seconds(fit, fold_fits.get(name, ()), per_image, folds) for name, fit in full.items()}
        if student is not None:
            seconds["student"] = _seconds(student, (), per_image, folds)
        classes = tuple(map(str, rows["classes"]))
        return TeamPredictions(tuple(full), classes, inputs, table("test"), rows["fit"], rows["fuse"], rows["test"]), seconds

    def _fold_fits(self, names: Sequence[str], folds: int) -> dict[str, list[KeptFit]]:
        """Of the members that have them all; of none where that is one member: a stack of one is none."""
        every = {name: [self.of(f"{name} fold {k}") for k in range(folds)] for name in names}
        complete = {name: fits for name, fits in every.items() if fits and all(fit.is_there for fit in fits)}
        return complete if len(complete) > 1 else {}


def _oof(fold_fits: Sequence[Sequence[KeptFit]], folds: Labels, labels: Labels) -> Predictions | None:
    if not fold_fits:
        return None
    logits = np.zeros((len(fold_fits), len(folds), fold_fits[0][0].logits("oof").shape[1]))
    for m, fits in enumerate(fold_fits):
        for k, fit in enumerate(fits):
            logits[m, folds == k] = fit.logits("oof")
    return Predictions(logits, (), labels)


def _seconds(full: KeptFit, fold_fits: Sequence[KeptFit], per_image: Mapping[str, float], folds: Labels) -> TrainingCost:
    """From the start of the training, which averaged weights share with their member, and a snapshot with those before it."""
    trained = training_of(full.record["member"])
    each = (per_image[trained] * int((folds != k).sum()) * fit.epochs for k, fit in enumerate(fold_fits))
    return TrainingCost(per_image[trained] * len(folds) * full.epochs, tuple(each), trained)


def training_of(member: Mapping[str, Any]) -> str:
    """The training that this member comes of, by the name that the team file has for it."""
    suffix = str(member["cycle"]) if member["snapshots"] > 1 else (member["average"] or {}).get("kind")
    return str(member["name"]).removesuffix(f".{suffix}")
