"""What a sweep's wall time has beside its fits: `python -m benchmarks.overhead [MINUTES]`; results/overhead-MINUTES.json.

Twelve equal fits (three members, three folds) of ResNet18 on digits, so long that the sweep takes about MINUTES (10). The same
fits are made bare, without Ray, MLflow, checkpoints and artifacts, as many at once as there are cores. Both take turns
(`benchmarks.turns`): 15 seconds the sweep, 5 the bare fits, which have a third of the epochs. What all epochs would take, packed
on the cores, is the peer; the sweep is counted from its first fit's first step to its last fit's end.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.machine import describe, write_result
from benchmarks.turns import Side, take_turns
from orchestrator.cluster.machines import trainer_environment
from orchestrator.config import loader as config
from orchestrator.planning.plan import Plan, Planner
from workers.config.job import Job
from workers.data import packing as data
from workers.data.splits import keep_split, read_split
from workers.data.store import Store
from workers.diagnostics.callback import Epoch
from workers.models.build import build
from workers.runtime.training_job import training_data
from workers.training.evaluation import predict_outputs
from workers.training.task import TrainingTask
from workers.training.train import train

TEAM = """\
version: 1
name: overhead
data: {{dataset: digits, folds: 3}}
train: {{epochs: {epochs}, batch_size: 64}}
defaults: {{stem: imagenet}}
members: [{{name: m, count: 3}}]
fusion: [vote, stack]
"""
CPU = torch.device("cpu")
CORES = os.cpu_count() or 1
SHARE = 3  # of the sweep's epochs that the bare fits have: one in so many
TURN_SECONDS = 5.0  # of the bare fits; the sweep has SHARE times as much
TRIED = 4  # epochs of the fit that says how many are needed
GOAL, GOAL_MINUTES = 0.06, 10  # some of it is around any trainings, however long


def planned(team: Path, home: Path) -> Plan:
    loaded = config.load_team(team)
    store = data.pack_data(loaded.data, home)
    keep_split(store, loaded.data, loaded.seed, home)
    return Planner(loaded, store, home).plan()


def bare(team: Path, home: Path, claims: Path, labels: list[str]) -> None:
    """Make fits that no other process of this kind has claimed; prints whether each is of a fold, and its times."""
    plan = planned(team, home)
    for job in plan.jobs:
        if job.label in labels and _claim(claims / job.label):
            began = time.time()
            history = _fit(job, plan.store)
            first, last = history[0]["time"] / 1000, history[-1]["time"] / 1000
            print(json.dumps({"fold": job.fold is not None, "times": [began, first, last, time.time()]}), flush=True)


def _claim(path: Path) -> bool:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _fit(job: Job, store: Store) -> list[Epoch]:
    torch.set_num_threads(job.train.threads)
    parts, recipe = read_split(store, job.split), job.seeded_recipe
    rows = training_data(job, store, parts, CPU)
    task = TrainingTask(rows, recipe, job.train, job.members, CPU)
    result = train(lambda: build(recipe, len(store.classes), store.size), task)
    for part in (parts.fuse, parts.test, *([] if job.fold is None else [parts.fit[parts.folds == job.fold]])):
        predict_outputs(result.network, rows.images, part, CPU)
    return result.history


def bare_side(folder: Path, team: Path, labels: list[str]) -> Side:
    """The bare fits, in a process a core."""
    place = folder / f"bare-{time.time()}"
    command = [
        sys.executable,
        "-m",
        "benchmarks.overhead",
        "bare",
        str(team),
        str(folder / "bare"),
        str(place / "claims"),
        *labels,
    ]
    return Side([command] * CORES, place, TURN_SECONDS, trainer_environment(1))


def bare_seconds(side: Side, epochs: int, of: int) -> list[float]:
    """How long bare fits of `of` epochs would take, by those of `epochs` epochs. Those of one kind take their mean."""
    fits = [json.loads(line) for line in side.lines() if line.startswith("{")]
    more = (of - 1) / (epochs - 1)  # the first epoch is longer
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for fit in fits:
        began, first, last, ended = fit["times"]
        seconds[fit["fold"]].append(side.seconds(began, first) + more * side.seconds(first, last) + side.seconds(last, ended))
    return [fmean(alike) for alike in seconds.values() for _ in alike]


def packed(seconds: list[float]) -> float:
    """When the last of these ends, each begun on the core that is free first, the longest first."""
    free = [0.0] * CORES
    for duration in sorted(seconds, reverse=True):
        free[free.index(min(free))] += duration
    return max(free)


def spread(home: Path) -> tuple[float, float]:
    """When the first fit's first step began, and when the last fit ended."""
    manifests = list(home.glob("jobs/*/fit/manifest.json"))
    firsts = [json.loads(path.read_text())["history"][0] for path in manifests]
    return min(float(e["time"] / 1000 - e["seconds"]) for e in firsts), max(path.stat().st_mtime for path in manifests)


def main(minutes: float) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        team, home = folder / "team.yaml", folder / "home"
        team.write_text(TEAM.format(epochs=TRIED))
        labels = [job.label for job in planned(team, folder / "bare").jobs]
        take_turns([tried := bare_side(folder, team, labels[:CORES])])
        epochs = TRIED * minutes * 60 * CORES / (len(labels) * fmean(bare_seconds(tried, TRIED, TRIED)))
        bare_epochs = max(TRIED, round(epochs / SHARE))
        team.write_text(TEAM.format(epochs=bare_epochs))
        bare_fits = bare_side(folder, team, labels)
        team = folder / "sweep.yaml"
        team.write_text(TEAM.format(epochs=SHARE * bare_epochs))
        command = [sys.executable, "-m", "conclave", "sweep", str(team), "--home", str(home)]
        sweep = Side([command], folder / "sweep", SHARE * TURN_SECONDS)
        take_turns([bare_fits, sweep])
        seconds, when = bare_seconds(bare_fits, bare_epochs, SHARE * bare_epochs), spread(home)
        span, processor = sweep.seconds(*when), sweep.processor(*when)
    result = {
        "minutes": minutes,
        "fits": len(labels),
        "epochs": SHARE * bare_epochs,
        "bare_seconds": seconds,
        "bare_packed_seconds": packed(seconds),
        "sweep_seconds": span,
        "whole_command_seconds": sum(end - begin for begin, end in sweep.windows),
        "processor_seconds": {"idle": round(CORES * span - processor.total(), 1)}
        | {kind: round(used, 1) for kind, used in processor.most_common() if used > 0.05},
        "overhead": span / packed(seconds) - 1,
        "goal": GOAL if minutes >= GOAL_MINUTES else None,
    }
    write_result(f"overhead-{minutes:g}", f"python -m benchmarks.overhead {minutes:g}", result)
    print(json.dumps(result, indent=1))
    print(json.dumps(describe()))


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["bare"]:
        bare(Path(words[1]), Path(words[2]), Path(words[3]), words[4:])
    else:
        main(float(words[0]) if words else GOAL_MINUTES)
