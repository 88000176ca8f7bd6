"""The thin Ray shell over `work`: one trainer actor does one job at a time and can be asked how far it is."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from workers import elsewhere, faults
from workers.elsewhere import Disk
from workers.environment import Environment, differences, environment
from workers.errors import ConclaveError, OtherEnvironment
from workers.spec import Job
from workers.work import Progress, work

NO_WAY_BACK = (
    "does not share the driver's disk, so its fits can come back by a tracking server alone, and `tracking.uri` names none. "
    "Name one, or put --home on a shared disk."
)


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
    """Runs one job after another. A second thread answers `life`, a third takes `stop`.

    `disk` is the driver's: a machine with another one borrows the data, and sends what it makes to the tracking store.
    """

    def __init__(self, head: Environment, strict: bool, disk: Disk | None = None) -> None:
        self.now = Progress()
        self.lock = threading.Lock()
        self.head, self.strict = head, strict
        self.disk = disk

    def run(self, job: Job, uri: str | None, run: str | None) -> dict[str, Any]:
        """What `work` gives. Where this machine computes with other versions than the head: a note, or no work at all."""
        with self.lock:
            self.now = Progress()
            faults.subject(job.label)
            found = differences(self.head, environment())
            told = f"the machine {platform.node()} is not like the head: {'; '.join(found)}" if found else ""
            if told and self.strict:
                return {"error": told, "kind": OtherEnvironment.__name__}
            if self.disk and not self.disk.is_here():
                return self._elsewhere(job, uri, run, told)
            return work(job, uri, run, self.now, told)

    def _elsewhere(self, job: Job, uri: str | None, run: str | None, told: str) -> dict[str, Any]:
        """Without the driver's disk: what the fit comes to reaches the driver through the tracking store alone."""
        if not str(uri).startswith("http"):
            return {"error": f"the machine {platform.node()} {NO_WAY_BACK}", "kind": ConclaveError.__name__}

        def read(name: str, offset: int) -> bytes:
            return ray.get(lend.remote(job.store, name, offset))  # type: ignore[no-any-return]

        try:
            borrowed = elsewhere.here(job, read)
        except (ConclaveError, OSError) as error:
            return {"error": f"the machine {platform.node()} got no data: {error}", "kind": "error"}
        return work(borrowed, uri, run, self.now, told, alone=True)

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


@ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})  # type: ignore[untyped-decorator]  # Ray's own
def lend(store: Path, name: str, offset: int) -> bytes:
    """On the head, where the driver has packed the data: a piece of it for a machine with another disk."""
    return elsewhere.read_chunk(store, name, offset)


@ray.remote(max_restarts=0)
class FusionActor:
    """Runs the fusion step where it was placed: a function of the orchestrator's, handed over with its arguments."""

    def call(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)
