"""What MLflow takes of training: eight members at once, each its own process, into one store; results/tracking.json.

python -m benchmarks.tracking

For an epoch's metrics: milliseconds for which the training thread is held, and milliseconds of processor time that the sending
thread takes beside it, which on a core of one's own is training time too.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import describe, write_result
from orchestrator.config import loader as config
from orchestrator.config import yaml_document as teamfile
from orchestrator.home import Home
from orchestrator.planning.plan import Planner
from workers.config.job import Job
from workers.data import packing as data
from workers.data.splits import keep_split
from workers.tracking.client import TrackingClient
from workers.tracking.job_run import JobRun

MEMBERS, EPOCHS, PAUSE = 8, 30, 2.0  # seconds of an epoch: a short one, for a batch may gather several
TEAM = "name: t\ndata: {dataset: digits, folds: 0}\nmembers: [{name: m, count: 8}]\n"
METRICS = ("train/loss", "train/accuracy", "train/lr", "train/images_per_second", "seconds", "fuse/loss", "fuse/accuracy")
GOAL = 10.0


def member(job: Job, uri: str, run: str, answers: Any) -> None:
    """As a trainer tells its run: the training thread sleeps in the place of an epoch."""
    fit_run = JobRun(job, uri, (run,))
    values = dict.fromkeys(METRICS, 0.5)
    fit_run.on_resume([])
    fit_run.on_epoch_end(0, {**values, "time": round(time.time() * 1000)})
    time.sleep(10)  # MLflow's imports and the first connection are no epoch's
    held, busy = [], time.process_time()
    for epoch in range(1, EPOCHS + 1):
        time.sleep(PAUSE)
        began = time.perf_counter()
        fit_run.on_epoch_end(epoch, {**values, "time": round(time.time() * 1000)})
        held.append(1000 * (time.perf_counter() - began))
    time.sleep(PAUSE)
    answers.put((median(held), max(held), 1000 * (time.process_time() - busy) / EPOCHS))
    fit_run.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        home = Home(Path(work))
        team = config.resolve_team(teamfile.parse_document(TEAM, Path(work, "team.yaml")))
        store = data.pack_data(team.data, home.path)
        keep_split(store, team.data, team.seed, home.path)
        tracking = TrackingClient(home.tracking_uri)
        experiment = tracking.experiment("t", home.path / "artifacts")
        context, started = multiprocessing.get_context("spawn"), []
        answers: Any = context.Queue()
        for job in Planner(team, store, home.path).plan().jobs:
            run = tracking.create_run(experiment, job.label, {})
            started.append(context.Process(target=member, args=(job, home.tracking_uri, run, answers)))
        for process in started:
            process.start()
        measurements = [answers.get() for _ in started]
        for process in started:
            process.join()
        points = len(tracking.client.get_metric_history(run, "fuse/loss"))
        assert points == EPOCHS + 1, f"{points} of {EPOCHS + 1} points arrived"
    held, worst, busy = (list(of) for of in zip(*measurements, strict=True))
    result = {
        "members": MEMBERS,
        "epoch_seconds": PAUSE,
        "held_milliseconds": median(held),
        "held_at_most_milliseconds": max(worst),
        "processor_milliseconds": median(busy),
        "goal": GOAL,
    }
    write_result("tracking", "python -m benchmarks.tracking", result)
    print(json.dumps(result, indent=1))
    print(json.dumps(describe()))


if __name__ == "__main__":
    main()
