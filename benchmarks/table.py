"""The accuracy table on the real CIFAR-10: members of benchmarks/table.yaml, every fusion, costs: `make table`.

CONCLAVE_TABLE=snapshots makes that of benchmarks/snapshots.yaml. Training takes hours and may be spread over days and machines.
`train` runs what is missing, one fit a core; the outputs of a fit that ends go to results/table/ and count as done from then on.
Without a word, everything is fused from those outputs alone, in seconds to minutes. Every setting is chosen on *fuse*; *test* is
read here, for the table.

    python -m benchmarks.table train [FIT ...]     # plain, "plain fold 0", ...; all that is missing where left out
    python -m benchmarks.table cost                # seconds an image of each recipe, interleaved
    python -m benchmarks.table tune                # concat_tuned, which needs the members' weights: where they are at hand
    python -m benchmarks.table                     # results/table.json and the table on screen
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe, write_result
from fusion.compare import Seconds, compare
from fusion.diversity import diversity
from fusion.fit import Fitted, best_single, fit_all, fit_one, recommend
from fusion.names import KNOWN
from fusion.outputs import Evidence, Gathered, Table, gather
from fusion.tuned import ConcatTuned, with_stages
from orchestrator import config, plan
from orchestrator.machines import trainer_environment
from orchestrator.plan import Plan
from workers import data
from workers.artifact import MemberArtifact
from workers.distill import Teacher
from workers.job import Job
from workers.models import build
from workers.restore import restore
from workers.spec import NO_RECIPE, MemberSpec
from workers.splits import Split, split
from workers.trainer import FitData, Trainer
from workers.watcher import Watcher
from workers.work import Progress, work

HERE = Path(__file__).parent
NAME = os.environ.get("CONCLAVE_TABLE", "table")  # table.yaml, or another team file that stands beside it
TEAM = HERE / f"{NAME}.yaml"
KEPT = HERE / "results" / NAME
TUNED = KEPT / "concat_tuned.npz"
HOME = Path(os.environ.get("CONCLAVE_TABLE_HOME", f"{NAME}-runs"))
COST_STEPS = 12


def planned() -> tuple[Plan, Split]:
    root = os.environ.get("CONCLAVE_CIFAR10")
    team = config.load(TEAM, Path(root) if root else None)
    store = data.pack(team.data, HOME, check=lambda store: split(store, team.data, team.seed))
    return plan.make(team, store, HOME), split(store, team.data, team.seed)


def kept(job: Job) -> Path:
    return KEPT / f"{job.label.replace(' ', '-')}.npz"


def is_kept(job: Job) -> bool:
    path = kept(job)
    return path.is_file() and json.loads(str(np.load(path)["record"]))["signature"] == job.signature


def train(labels: Sequence[str]) -> None:
    """Fit what is missing, a process a core; each goes on from its last checkpoint."""
    made, _ = planned()
    todo = [job for job in made.jobs if not is_kept(job) and (not labels or job.label in labels)]
    running: list[subprocess.Popen[bytes]] = []
    while todo or running:
        running = [p for p in running if p.poll() is None]
        while todo and len(running) < (os.cpu_count() or 1):
            command = [sys.executable, "-m", "benchmarks.table", "fit", todo.pop(0).label]
            running.append(subprocess.Popen(command, env={**os.environ, **trainer_environment(1)}))
        time.sleep(1)


def fit(label: str) -> None:
    made, parts = planned()
    job = next(job for job in made.jobs if job.label == label)
    result = work(job, None, None, _Told(job.label))
    if "error" in result:
        raise SystemExit(f"{label}: {result['error']}")
    keep(job, parts)


class _Told(Progress):
    """A line an epoch."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        super().epoch(epoch, metrics)
        print(f"{self.label}: epoch {epoch + 1}  fuse {metrics['fuse/accuracy']:.2%}  {metrics['seconds']:.0f} s", flush=True)


def keep(job: Job, parts: Split) -> None:
    """A fit's outputs, small enough to commit: float32 logits, float16 features and the head of a full fit, the record."""
    artifact = MemberArtifact.of(job.home, job.signature)
    outputs, record = artifact.outputs(), artifact.manifest()
    arrays: dict[str, Any] = {"record": json.dumps({**record, "files": None})}
    wanted = {"fuse": parts.fuse, "test": parts.test, **({} if job.fold is None else {"oof": parts.fit[parts.folds == job.fold]})}
    for part, rows in wanted.items():
        assert np.array_equal(outputs[f"{part}_rows"].numpy(), rows)
        arrays[f"{part}_logits"] = outputs[f"{part}_logits"].numpy().astype(np.float32)
        if job.fold is None:
            arrays[f"{part}_features"] = outputs[f"{part}_features"].numpy().astype(np.float16)
    if job.fold is None:
        weights = artifact.weights()
        arrays |= {"head_weight": weights["head.weight"].numpy(), "head_bias": weights["head.bias"].numpy()}
    KEPT.mkdir(parents=True, exist_ok=True)
    partial = KEPT / f".{kept(job).name}"
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.replace(kept(job))
    _keep_rows(job, parts)


def _keep_rows(job: Job, parts: Split) -> None:
    store = data.Store(job.store)
    labels = np.asarray(store.labels).astype(np.uint8)
    rows = {name: getattr(parts, name).astype(np.int32) for name in ("fit", "fuse", "test")}
    np.savez_compressed(KEPT / "rows.npz", labels=labels, folds=parts.folds.astype(np.int8), classes=store.classes, **rows)


def cost() -> None:
    """Seconds an image of each recipe, whole steps of the trainer on one thread, interleaved; a student's with its teachers."""
    torch.set_num_threads(1)
    team = config.load(TEAM)
    rows = torch.arange(team.train.batch_size)
    images = torch.randint(0, 255, (len(rows), 32, 32, 3), dtype=torch.uint8)
    teacher = Teacher([build(member, 10, 32).eval() for member in team.members])
    fits = {}
    for member in team.recipes:
        if member.averaged or member.cycle > 1:
            continue  # of another one's training
        data = FitData(images, rows % 10, rows, None, teacher=teacher if member is team.student else None)
        fits[_trained(member.model_dump(mode="json"))] = Trainer(
            build(member, 10, 32).train(), data, member, team.train, 0, torch.device("cpu"), len(rows), None, Watcher(), 300.0
        )
    times: dict[str, list[float]] = {name: [] for name in fits}
    for step in range(COST_STEPS):
        for name, one in fits.items():
            began = time.perf_counter()
            one._step(0, step, rows)
            times[name].append((time.perf_counter() - began) / len(rows))
    result = {name: median(values) for name, values in times.items()}
    write_result(f"{NAME}-cost", "python -m benchmarks.table cost", {"seconds_an_image": result})
    print(json.dumps(result, indent=1))


def gathered() -> tuple[Gathered, dict[str, Seconds]]:
    """Members whose full fit is kept, from results/table/ alone; those with all fold fits have OOF outputs."""
    team = config.load(TEAM)
    rows = np.load(KEPT / "rows.npz")
    labels, folds = rows["labels"].astype(np.int64), rows["folds"].astype(np.int64)
    per_image = json.loads((HERE / "results" / f"{NAME}-cost.json").read_text())["result"]["seconds_an_image"]
    full = {m.name: np.load(KEPT / f"{m.name}.npz") for m in team.members if (KEPT / f"{m.name}.npz").is_file()}
    paths = {n: [KEPT / f"{n}-fold-{k}.npz" for k in range(team.data.folds)] for n in full}
    fold_fits = {n: [np.load(p) for p in of] for n, of in paths.items() if of and all(p.is_file() for p in of)}
    if len(fold_fits) < 2:
        fold_fits = {}  # a stack of one member is none: it blends until another's are there
    names = tuple(full)
    student = np.load(KEPT / "student.npz") if (KEPT / "student.npz").is_file() else None
    with_oof = tuple(i for i, n in enumerate(names) if n in fold_fits)

    def table(part: str) -> Table:
        logits = np.stack([full[n][f"{part}_logits"] for n in names]).astype(np.float64)
        features = tuple(full[n][f"{part}_features"].astype(np.float32) for n in names)
        of_folds = {n: np.stack([f[f"{part}_logits"] for f in of]) for n, of in fold_fits.items()}
        missing = np.full((team.data.folds, *logits.shape[1:]), np.nan)
        every = np.stack([of_folds.get(n, missing) for n in names]).astype(np.float64) if of_folds else None
        taught = None if student is None else student[f"{part}_logits"].astype(np.float64)
        return Table(logits, features, labels[rows[part]], every, taught)

    heads = tuple((full[n]["head_weight"].astype(np.float64), full[n]["head_bias"].astype(np.float64)) for n in names)
    recipes = [{k: v for k, v in _record(full[n])["member"].items() if k not in (*NO_RECIPE, "seed")} for n in names]
    evidence = Evidence(
        table("fuse"),
        _oof([fold_fits[names[i]] for i in with_oof], folds, labels[rows["fit"]]),
        folds,
        heads,
        with_oof,
        all(recipe == recipes[0] for recipe in recipes),
    )
    seconds = {n: _seconds(full[n], fold_fits.get(n, ()), per_image, folds) for n in names}
    if student is not None:
        seconds["student"] = _seconds(student, (), per_image, folds)
    found = Gathered(names, tuple(map(str, rows["classes"])), evidence, table("test"), rows["fit"], rows["fuse"], rows["test"])
    return found, seconds


def _seconds(full: Any, fold_fits: Sequence[Any], per_image: dict[str, float], folds: Any) -> Seconds:
    """Averaged weights cost nothing beside the training that they are averaged along; a snapshot costs its own cycle beside those
    before it."""
    member, trained = _record(full)["member"], _trained(_record(full)["member"])
    spent = per_image[trained] * _images(full, len(folds))
    if member["averaged"]:
        return Seconds(0.0, (0.0,) * len(fold_fits), spent, trained)
    before = 0.0
    if member["snapshots"] > 1:
        recipe = MemberSpec.model_validate_json(json.dumps(member))
        cycles = recipe.cycle_lengths(_record(full)["train"]["epochs"])[: recipe.cycle]
        before = spent * (1 - cycles[-1] / sum(cycles))
    each = (per_image[trained] * _images(f, int((folds != k).sum())) for k, f in enumerate(fold_fits))
    return Seconds(spent - before, tuple(each), before, trained)


def _trained(member: dict[str, Any]) -> str:
    """The training that this member comes of, by the name that the team file has for it."""
    suffix = str(member["cycle"]) if member["snapshots"] > 1 else (member["average"] or {}).get("kind")
    return str(member["name"]).removesuffix(f".{suffix}")


def _record(kept_fit: Any) -> dict[str, Any]:
    return json.loads(str(kept_fit["record"]))  # type: ignore[no-any-return]


def _images(kept_fit: Any, rows: int) -> int:
    return rows * len(_record(kept_fit)["history"])


def _oof(fold_fits: Sequence[Sequence[Any]], folds: Any, labels: Any) -> Table | None:
    if not fold_fits:
        return None
    logits = np.zeros((len(fold_fits), len(folds), fold_fits[0][0]["oof_logits"].shape[1]))
    for m, of in enumerate(fold_fits):
        for k, one in enumerate(of):
            logits[m, folds == k] = one["oof_logits"]
    return Table(logits, (), labels)


class Kept:
    """A fusion whose probabilities on *test* were kept, because what it was made of was too large to keep."""

    def __init__(self, on_test: Any) -> None:
        self.on_test = on_test

    def predict_proba(self, table: Table) -> Any:
        assert len(table.labels) == len(self.on_test)
        return self.on_test


def tune() -> None:
    """concat_tuned from the members' weights: its nested probabilities on *fuse*, and those on *test*."""
    made, parts = planned()
    root = {job.member.name: MemberArtifact.of(job.home, job.signature) for job in made.jobs if job.fold is None}
    members = [member.name for member in made.team.members]
    full = {name: root[name].root for name in members}
    labels = np.asarray(made.store.labels)
    found = gather(full, {}, made.store.classes, labels, parts.folds, parts.fit)
    networks = [restore(root[name], made.store.classes, made.store.size) for name in members]
    found = with_stages(found, networks, made.store.images)
    fitted = fit_one("concat_tuned", ConcatTuned, found.evidence)
    arrays = {"fuse": fitted.nested.astype(np.float32), "test": fitted.predict_proba(found.test).astype(np.float32)}
    np.savez_compressed(TUNED, allow_pickle=False, penalty=fitted.method.penalty_, members=members, **arrays)
    print(f"concat_tuned: penalty {fitted.method.penalty_:g}")


def fuse() -> None:
    found, seconds = gathered()
    fitted = fit_all(found, KNOWN)
    if TUNED.is_file() and list(np.load(TUNED)["members"]) == list(found.names):
        tuned = np.load(TUNED)
        fitted["concat_tuned"] = Fitted("concat_tuned", Kept(tuned["test"].astype(float)), 1.0, tuned["fuse"].astype(float))
    chosen, why = recommend(found, fitted)
    result = {
        "members": list(found.names),
        "recommended": chosen,
        "why": why,
        "single": best_single(found, fitted),
        "rows": compare(found, fitted, seconds),
        "diversity": diversity(found.names, found.evidence.fuse),
    }
    write_result(NAME, "python -m benchmarks.table", result)
    for name, row in result["rows"].items():  # type: ignore[attr-defined]
        points, (low, high), _ = row["against_single"]
        gain = f"{points * 100:+.2f} ({low * 100:+.2f}..{high * 100:+.2f})"
        print(f"{name:12} {row['test']['accuracy']:.2%}  NLL {row['test']['nll']:.4f}  {gain:24} {row['train_cost']:.2f}x")
    print(json.dumps(describe()))


def main() -> None:
    word, *more = [*sys.argv[1:], "fuse"] if len(sys.argv) < 2 else sys.argv[1:]
    {"train": lambda: train(more), "fit": lambda: fit(more[0]), "cost": cost, "tune": tune, "fuse": fuse}[word]()


if __name__ == "__main__":
    main()
