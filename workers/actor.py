"""The thin Ray shell over `member.run`: one trainer actor does one job at a time and can be asked how far it is."""

from __future__ import annotations

import threading
import traceback
from dataclasses import dataclass, field
from typing import Any

import ray

from workers.artifact import MemberArtifact
from workers.errors import ConclaveError
from workers.spec import Job


@dataclass
class Progress:
    """What the live table shows of a running fit. Passed to the tracking run as well."""

    run: Any
    epoch_: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.epoch_, self.metrics = epoch + 1, metrics
        if self.run:
            self.run.epoch(epoch, metrics)

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.run:
            self.run.note(text)


def work(job: Job, uri: str | None, run: str | None, progress: Progress) -> dict[str, Any]:
    """Do one job and tell its tracking run. Gives the manifest; {"error", "kind"} where the member itself failed."""
    from workers import member
    from workers.tracking import FitRun

    artifact = MemberArtifact.of(job.home, job.signature)
    progress.run = FitRun(uri, run, artifact.checkpoint) if uri and run else None
    try:
        manifest = member.run(job, progress)
    except ConclaveError as error:
        if progress.run:
            progress.run.failed(str(error))
        return {"error": str(error), "kind": type(error).__name__}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "kind": "error", "trace": traceback.format_exc()}
    if progress.run:
        progress.run.done(artifact.folder, manifest)
    return manifest


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
