"""The accuracy table on the real CIFAR-10: members of benchmarks/table.yaml, every fusion, costs: `make table`.

CONCLAVE_TABLE=snapshots makes that of benchmarks/snapshots.yaml. Training takes hours and may be spread over days and machines.
`train` runs what is missing, one fit a core; the outputs of a fit that ends go to results/table/ and count as done from then on.
Without a word, everything is fused from those outputs alone, in seconds to minutes. Every setting is chosen on *fuse*; *test* is
read here, for the table.

    python -m benchmarks.table train [FIT ...]     # plain, "plain fold 0", ...; all that is missing where left out
    python -m benchmarks.table cost                # seconds an image of each recipe, interleaved
    python -m benchmarks.table concat [FEATURES]   # concat's probabilities, which need features: after `train`, where it ran,
                                                   # or by benchmarks/concat.py's folder of features
    python -m benchmarks.table                     # results/table.json and the table on screen
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.concat import read, read_test
from benchmarks.kept import KeptFits, load_small, save_small
from benchmarks.machine import describe, write_result
from fusion.interface import FUSIONS
from fusion.methods.concat import Concat
from fusion.metrics.calibration import log_probabilities
from fusion.metrics.diversity import diversity
from fusion.predictions import FusionInputs, Predictions, TeamPredictions, TrainingFolders, load_predictions, softmax
from fusion.selection.compare import compare
from fusion.selection.costs import TrainingCost, paid_for
from fusion.selection.fitting import FittedFusion, fit_all, fit_fusion
from fusion.selection.networks import CandidateNetworks, Effort
from fusion.selection.recommendation import best_single, recommend
from orchestrator.cluster.machines import trainer_environment
from orchestrator.config import loader as config
from orchestrator.planning.plan import Plan, Planner
from workers.data import packing as data
from workers.data.splits import Split, keep_split
from workers.models.build import build
from workers.models.multiply_adds import multiply_adds
from workers.runtime.heartbeat import JobProgress
from workers.runtime.job_runner import run_job
from workers.training.distillation import Teacher
from workers.training.steps import Stepper
from workers.training.task import TrainingData, TrainingTask

HERE = Path(__file__).parent
NAME = os.environ.get("CONCLAVE_TABLE", "table")  # table.yaml, or another team file that stands beside it
TEAM = HERE / f"{NAME}.yaml"
KEPT = KeptFits(HERE / "results" / NAME)
CONCAT = KEPT.folder / "concat.npz"
HOME = Path(os.environ.get("CONCLAVE_TABLE_HOME", f"{NAME}-runs"))
COST_STEPS = 12
CLASSES, FEATURES = 10, 512  # of each member


def planned() -> tuple[Plan, Split]:
    root = os.environ.get("CONCLAVE_CIFAR10")
    team = config.load_team(TEAM, Path(root) if root else None)
    store = data.pack_data(team.data, HOME)
    parts = keep_split(store, team.data, team.seed, HOME)
    return Planner(team, store, HOME).plan(), parts


def train(labels: Sequence[str]) -> None:
    """Fit what is missing, a process a core; each goes on from its last checkpoint."""
    plan, _ = planned()
    missing = {planned.job.key for planned in plan.members if not KEPT.has(planned)}
    todo = [job for job in plan.jobs if job.key in missing and (not labels or job.label in labels)]
    running: list[subprocess.Popen[bytes]] = []
    while todo or running:
        running = [p for p in running if p.poll() is None]
        while todo and len(running) < (os.cpu_count() or 1):
            command = [sys.executable, "-m", "benchmarks.table", "fit", todo.pop(0).label]
            running.append(subprocess.Popen(command, env={**os.environ, **trainer_environment(1)}))
        time.sleep(1)
    if all(planned.artifact.done for planned in plan.members if planned.job.fold is None):
        concat()


def fit(label: str) -> None:
    plan, parts = planned()
    job = next(job for job in plan.jobs if job.label == label)
    result = run_job(job, _EpochPrinter(job.label))
    if result.failure:
        raise SystemExit(f"{label}: {result.failure.sentence}")
    for planned_member in plan.members:
        if planned_member.job.key == job.key:
            KEPT.keep(planned_member, parts)


class _EpochPrinter(JobProgress):
    """A line an epoch."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def on_epoch_end(self, epoch: int, metrics: dict[str, float]) -> None:
        super().on_epoch_end(epoch, metrics)
        print(f"{self.label}: epoch {epoch + 1}  fuse {metrics['fuse/accuracy']:.2%}  {metrics['seconds']:.0f} s", flush=True)


def cost() -> None:
    """Seconds an image of each recipe, whole steps of the trainer on one thread, interleaved; a student's with its teachers."""
    torch.set_num_threads(1)
    team = config.load_team(TEAM)
    rows = torch.arange(team.train.batch_size)
    images = torch.randint(0, 255, (len(rows), 32, 32, 3), dtype=torch.uint8)
    teacher = Teacher([build(member, 10, 32).eval() for member in team.members])
    fits = {}
    for member in team.recipes:
        taught = TrainingData(images, rows % 10, rows, None, teacher=teacher if member is team.student else None)
        task = TrainingTask(taught, member, team.train, member.members, torch.device("cpu"))
        fits[member.name] = Stepper(build(member, 10, 32).train(), task, len(rows))
    times: dict[str, list[float]] = {name: [] for name in fits}
    for step in range(COST_STEPS):
        for name, stepper in fits.items():
            began = time.perf_counter()
            stepper.take(step, 0, rows)
            times[name].append((time.perf_counter() - began) / len(rows))
    result = {name: median(values) for name, values in times.items()}
    write_result(f"{NAME}-cost", "python -m benchmarks.table cost", {"seconds_an_image": result})
    print(json.dumps(result, indent=1))


def gathered() -> tuple[TeamPredictions, dict[str, TrainingCost]]:
    """What is kept, with its costs: results/table/ and results/table-cost.json alone."""
    costs = json.loads((HERE / "results" / f"{NAME}-cost.json").read_text())["result"]
    return KEPT.gathered(config.load_team(TEAM), costs["seconds_an_image"])


class KeptFusion(Concat):
    """A fusion whose probabilities on *test* were kept, because what it was made of was too large to keep."""

    def __init__(self, on_test: Any, penalty: float) -> None:
        super().__init__()
        self.on_test, self.penalty_ = on_test, penalty

    def predict_proba(self, predictions: Predictions) -> Any:
        assert len(predictions.labels) == len(self.on_test)
        return self.on_test


def concat(features: Path | None = None) -> None:
    """Fit concat on features, of the trainings or of a folder; keep its nested probabilities, and those on *test*."""
    members = [member.name for member in config.load_team(TEAM).members]
    inputs, test = (read(features), read_test(features)) if features else trained_inputs(members)
    fitted = fit_fusion("concat", Concat, inputs)
    arrays = {
        "fuse": log_probabilities(fitted.nested).astype(np.float16),
        "test": log_probabilities(fitted.predict_proba(test)).astype(np.float16),
    }
    assert isinstance(fitted.method, Concat)
    save_small(CONCAT, {"penalty": fitted.method.penalty_, "members": members, **arrays})
    print(f"concat: penalty {fitted.method.penalty_:g}")


def trained_inputs(members: Sequence[str]) -> tuple[FusionInputs, Predictions]:
    """What concat learns from, and the predictions on *test*, of the trainings."""
    plan, parts = planned()
    root = {planned.member.name: planned.artifact for planned in plan.members if planned.job.fold is None}
    full = {name: root[name].root for name in members}
    team = load_predictions(TrainingFolders(full, {}), plan.store, parts)
    return team.inputs, team.test


def fuse() -> None:
    team, seconds = gathered()
    fitted = fit_all(team, [name for name in FUSIONS.own_names() if name != "concat"])
    stored = load_small(CONCAT) if CONCAT.is_file() else {}
    if list(stored.get("members", ())) == list(team.names):
        fuse_rows, test_rows = (softmax(stored[part].astype(float)) for part in ("fuse", "test"))
        kept = KeptFusion(test_rows, float(stored["penalty"]))
        fitted["concat"] = FittedFusion("concat", kept, 1.0, fuse_rows)
    costs = candidate_efforts(team, fitted)
    chosen, choice = recommend(team, fitted, costs)
    rows = compare(team, fitted, seconds)
    kept_names = [name for name, fusion in fitted.items() if isinstance(fusion.method, KeptFusion)]
    result = {
        "members": list(team.names),
        "recommended": chosen,
        "choice": choice.model_dump(mode="json"),
        "single": best_single(team, fitted),
        "rows": {name: row.model_dump(mode="json") for name, row in rows.items()},
        "taken_as_kept": kept_names,
        "diversity": diversity(team.names, team.inputs.fuse).model_dump(mode="json"),
    }
    write_result(NAME, "python -m benchmarks.table", result)
    for name, row in rows.items():
        assert row.test
        assert row.against_single
        points, (low, high), _ = row.against_single
        gain = f"{points * 100:+.2f} ({low * 100:+.2f}..{high * 100:+.2f})"
        print(f"{name:12} {row.test.accuracy:.2%}  NLL {row.test.nll:.4f}  {gain:24} {row.train_cost:.2f}x")
    print(f"Recomputed from the members' logits, except for {', '.join(kept_names)}: its probabilities were kept.")
    print(json.dumps(describe()))


def candidate_efforts(team: TeamPredictions, fitted: Mapping[str, FittedFusion]) -> dict[str, Effort]:
    """What each candidate costs in multiply-adds."""
    written = config.load_team(TEAM)
    counted = {recipe.name: multiply_adds(build(recipe, 10, 32).eval(), 32) for recipe in written.recipes}
    _, trained = KEPT.gathered(written, {name: float(count) for name, count in counted.items()})
    by_member = {member.name: counted[recipe.name] for recipe in written.trainings for member in recipe.members}
    members = [by_member[name] for name in team.names]
    networks = CandidateNetworks(members, [[count] * written.data.folds for count in members], counted.get("student"))
    found = {}
    for name, fusion in fitted.items():
        used = networks.used(fusion)
        found[name] = Effort(float(sum(used) + head_size(fusion)), paid_for(name, fusion, team, trained))
    return found


def head_size(fusion: FittedFusion) -> int:
    """The coefficients of a fusion's head, each of which is a multiply-add; concat's are those of all features."""
    if isinstance(fusion.method, Concat):
        return CLASSES * FEATURES * len(load_small(CONCAT)["members"])
    return int(np.size(getattr(fusion.method, "coef_", ())))


def main() -> None:
    word, *more = [*sys.argv[1:], "fuse"] if len(sys.argv) < 2 else sys.argv[1:]
    by_word = {
        "train": lambda: train(more),
        "fit": lambda: fit(more[0]),
        "cost": cost,
        "concat": lambda: concat(*map(Path, more)),
        "fuse": fuse,
    }
    by_word[word]()


if __name__ == "__main__":
    main()
