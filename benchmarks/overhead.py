"""What a sweep's wall time has beside its fits: `python -m benchmarks.overhead [MINUTES]`; results/overhead-MINUTES.json.

Twelve equal fits (three members, three folds) of ResNet18 on digits, so long that the sweep takes about MINUTES (10). The same
fits are made bare, without Ray, MLflow, checkpoints and artifacts: half of them before the sweep, half after it, as many at once
as there are cores. Their durations packed on the cores are the peer; the sweep is counted from its first fit's first step to its
last fit's end. As the machine's speed changes meanwhile, the durations are those at the speed that it had during the sweep
(`benchmarks.speedometer`); `overhead_by_the_clock` is without that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.machine import describe, write_result
from benchmarks.speedometer import Speedometer
from orchestrator.cluster.machines import trainer_environment
from orchestrator.config import loader as config
from orchestrator.planning.plan import Plan, Planner
from workers.config.job import Job
from workers.data import packing as data
from workers.data.splits import get_split
from workers.data.store import Store
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
TRIED = 4  # epochs of the fit that says how many are needed
GOAL, GOAL_MINUTES = 0.06, 10  # some of it is around any trainings, however long


def planned(team: Path, home: Path) -> Plan:
    loaded = config.load_team(team)
    store = data.pack_data(loaded.data, home, check=lambda store: get_split(store, loaded.data, loaded.seed))
    return Planner(loaded, store, home).plan()


def bare(team: Path, home: Path, labels: list[str]) -> None:
    """Fit one after another, in this process; prints the seconds of each."""
    plan = planned(team, home)
    print(json.dumps([_bare(job, plan.store) for job in plan.jobs if job.label in labels]))


def _bare(job: Job, store: Store) -> float:
    torch.set_num_threads(job.train.threads)
    parts, recipe = get_split(store, job.data, job.team_seed), job.seeded_recipe
    began = time.perf_counter()
    rows = training_data(job, store, parts, CPU)
    task = TrainingTask(rows, recipe, job.train, job.members, CPU)
    result = train(lambda: build(recipe, len(store.classes), store.size), task)
    for part in (parts.fuse, parts.test, *([] if job.fold is None else [parts.fit[parts.folds == job.fold]])):
        predict_outputs(result.network, rows.images, part, CPU)
    return time.perf_counter() - began


def bare_at_once(team: Path, home: Path, labels: list[str]) -> list[float]:
    """Seconds of these fits, in a process a core."""
    env = {**os.environ, **trainer_environment(1)}
    shares = [labels[core::CORES] for core in range(CORES)]
    command = [sys.executable, "-m", "benchmarks.overhead", "bare", str(team), str(home)]
    started = [subprocess.Popen([*command, *share], env=env, stdout=subprocess.PIPE, text=True) for share in shares]
    return [seconds for process in started for seconds in json.loads(process.communicate()[0].splitlines()[-1])]


def bare_half(team: Path, home: Path, labels: list[str], speedometer: Speedometer) -> tuple[list[float], float]:
    """Seconds of these fits, and the machine's speed meanwhile."""
    began = time.time()
    seconds = bare_at_once(team, home, labels)
    return seconds, speedometer.speed(began, time.time())


def packed(seconds: list[float]) -> float:
    """When the last of these ends, each begun on the core that is free first, the longest first."""
    free = [0.0] * CORES
    for duration in sorted(seconds, reverse=True):
        free[free.index(min(free))] += duration
    return max(free)


def swept(team: Path, home: Path) -> float:
    """Seconds of the whole command."""
    began = time.time()
    command = [sys.executable, "-m", "conclave", "sweep", str(team), "--home", str(home)]
    subprocess.run(command, capture_output=True, check=True)
    return time.time() - began


def spread(home: Path) -> tuple[float, float]:
    """When the first fit's first step began, and when the last fit ended."""
    manifests = list(home.glob("jobs/*/fit/manifest.json"))
    firsts = [json.loads(path.read_text())["history"][0] for path in manifests]
    return min(float(e["time"] / 1000 - e["seconds"]) for e in firsts), max(path.stat().st_mtime for path in manifests)


def main(minutes: float) -> None:
    with tempfile.TemporaryDirectory() as work, Speedometer() as speedometer:
        folder = Path(work)
        team = folder / "team.yaml"
        team.write_text(TEAM.format(epochs=TRIED))
        labels = [job.label for job in planned(team, folder / "bare").jobs]
        tried = median(bare_at_once(team, folder / "bare", labels[:CORES]))
        epochs = max(TRIED, round(TRIED * minutes * 60 * CORES / (len(labels) * tried)))
        team.write_text(TEAM.format(epochs=epochs))
        before, speed_before = bare_half(team, folder / "bare", labels[::2], speedometer)
        whole = swept(team, folder / "home")
        after, speed_after = bare_half(team, folder / "bare", labels[1::2], speedometer)
        began, ended = spread(folder / "home")
        span, speed = ended - began, speedometer.speed(began, ended)
    best = packed([s * speed_before / speed for s in before] + [s * speed_after / speed for s in after])
    result = {
        "minutes": minutes,
        "fits": len(labels),
        "epochs": epochs,
        "bare_seconds": [*before, *after],
        "speed": {"before": speed_before / speed, "sweep": 1.0, "after": speed_after / speed},
        "bare_packed_seconds": best,
        "sweep_seconds": span,
        "whole_command_seconds": whole,
        "overhead": span / best - 1,
        "overhead_by_the_clock": span / packed([*before, *after]) - 1,
        "goal": GOAL if minutes >= GOAL_MINUTES else None,
    }
    write_result(f"overhead-{minutes:g}", f"python -m benchmarks.overhead {minutes:g}", result)
    print(json.dumps(result, indent=1))
    print(json.dumps(describe()))


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["bare"]:
        bare(Path(words[1]), Path(words[2]), words[3:])
    else:
        main(float(words[0]) if words else GOAL_MINUTES)
