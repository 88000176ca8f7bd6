"""The thin Ray shell over `work`: one trainer actor does one job at a time and can be asked how far it is."""

from __future__ import annotations

import threading
from typing import Any

import ray

from workers.spec import Job
from workers.work import Progress, work


@ray.remote(max_restarts=0, max_concurrency=2)
class TrainerActor:
    """Runs one job after another. A second thread answers `progress`, which is the sign of life too."""

    def __init__(self) -> None:
        self.now = Progress(None)
        self.lock = threading.Lock()

    def run(self, job: Job, uri: str | None, run: str | None) -> dict[str, Any]:
        with self.lock:
            self.now = Progress(None)
            return work(job, uri, run, self.now)

    def progress(self) -> tuple[int, dict[str, float], list[str]]:
        return self.now.epoch_, self.now.metrics, self.now.notes


@ray.remote(max_restarts=0)
class FusionActor:
    """Runs the fusion step where it was placed: a function of the orchestrator's, handed over with its arguments."""

    def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)
