"""The thin Ray shell over `work`: one trainer actor does one job at a time and can be asked how far it is."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
from dataclasses import dataclass
from typing import Any

import ray

from workers import faults
from workers.environment import Environment, differences, environment
from workers.errors import OtherEnvironment
from workers.spec import Job
from workers.work import Progress, work


@dataclass(frozen=True)
class Life:
    """A trainer's sign of life."""

    pid: int
    node: str
    epoch: int
    metrics: dict[str, float]
    notes: list[str]
    steps: int


@ray.remote(max_restarts=0, max_concurrency=3)
class TrainerActor:
    """Runs one job after another. A second thread answers `life`, a third takes `stop`."""

    def __init__(self, head: Environment, strict: bool) -> None:
        self.now = Progress()
        self.lock = threading.Lock()
        self.head, self.strict = head, strict

    def run(self, job: Job, uri: str | None, run: str | None) -> dict[str, Any]:
        """What `work` gives. Where this machine computes with other versions than the head: a note, or no work at all."""
        with self.lock:
            self.now = Progress()
            faults.subject(job.label)
            found = differences(self.head, environment())
            told = f"the machine {platform.node()} is not like the head: {'; '.join(found)}" if found else ""
            if told and self.strict:
                return {"error": told, "kind": OtherEnvironment.__name__}
            return work(job, uri, run, self.now, told)

    def life(self) -> Life:
        node = ray.get_runtime_context().get_node_id()
        now = self.now
        return Life(os.getpid(), node, now.epoch_, now.metrics, list(now.notes), now.steps)

    def stop(self) -> None:
        """The running fit writes a checkpoint after its step and leaves."""
        self.now.stop = True


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]  # Ray's own
def end_process(pid: int) -> None:
    """`ray.kill` leaves a stopped process alive, with its memory: its own node has to end it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]  # Ray's own
def is_there() -> bool:
    """What a machine answers that is still there."""
    return True


@ray.remote(max_restarts=0)
class FusionActor:
    """Runs the fusion step where it was placed: a function of the orchestrator's, handed over with its arguments."""

    def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)
