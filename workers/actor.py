"""The thin Ray shell over `work`: one trainer actor does one job at a time and can be asked how far it is."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from workers import elsewhere, faults
from workers.elsewhere import Disk
from workers.environment import Environment, differences, environment
from workers.errors import ConclaveError, OtherEnvironment, Preempted
from workers.job import Job
from workers.work import Life, Progress, work

NO_WAY_BACK = (
    "does not share the driver's disk, so its fits can come back by a tracking server alone, and `tracking.uri` names none. "
    "Name one, or put --home on a shared disk."
)


@dataclass(frozen=True)
class Start:
    """How a job starts on the machine where it happens to be: compared with the head, and with the data at hand."""

    head: Environment
    strict: bool
    disk: Disk | None = None  # the driver's; a machine with another one borrows the data, and sends what it makes to the store
    comes_back: bool = True  # whether a tracking server takes what is made on another disk

    def __call__(self, job: Job) -> tuple[Job, str, bool]:
        """The job as this machine has to do it, a note, and whether nobody else sees its disk. Raises ConclaveError."""
        found = differences(self.head, environment())
        told = f"the machine {platform.node()} is not like the head: {'; '.join(found)}" if found else ""
        if told and self.strict:
            raise OtherEnvironment(told)
        if self.disk is None or self.disk.is_here():
            return job, told, False
        if not self.comes_back:
            raise ConclaveError(f"the machine {platform.node()} {NO_WAY_BACK}")

        def read(name: str, offset: int) -> bytes:
            return ray.get(lend.remote(job.store, name, offset))  # type: ignore[no-any-return]

        return elsewhere.here(job, read), told, True


@ray.remote(max_restarts=0, max_concurrency=4)
class TrainerActor:
    """Runs one job after another. Other threads answer `life`, take `stop`, and hear of a job that several processes do."""

    def __init__(self, start: Start) -> None:
        self.now = Progress()
        self.lock = threading.Lock()
        self.start = start
        self.told: Life | None = None
        self.waiting = False

    def run(self, job: Job, uri: str | None, run: str | None, gpus: float = 0) -> dict[str, Any]:
        """What `work` gives; on a machine that can't do the job, or should not, {"error", "kind"}."""
        with self.lock:
            self.now, self.told = Progress(), None
            faults.subject(job.label)
            start = replace(self.start, comes_back=str(uri).startswith("http"))
            if job.member.resources.processes > 1:
                return self._together(job, (uri, run), gpus, start)
            try:
                here, note, alone = start(job)
            except ConclaveError as error:
                return {"error": str(error), "kind": type(error).__name__}
            except OSError as error:
                return {"error": f"the machine {platform.node()} got no data: {error}", "kind": "error"}
            return work(here, uri, run, self.now, note, alone)

    def _together(self, job: Job, tracked: tuple[str | None, str | None], gpus: float, start: Start) -> dict[str, Any]:
        self.waiting = True
        try:
            from workers import together

            return together.run(together.Share(job, tracked, gpus, start, ray.get_runtime_context().current_actor))
        except Exception as error:
            lost = self.told is not None and self.told.node not in _alive()
            text = " ".join(str(error).split())[-300:]  # Train's own are pages, and end with the cause
            return {"error": f"{type(error).__name__}: {text}", "kind": Preempted.__name__ if lost else "error"}
        finally:
            self.waiting = False

    def heard(self, life: Life) -> bool:
        """From the first of several processes; whether they are to stop."""
        self.waiting, self.told = False, life
        return self.now.stop

    def life(self) -> Life:
        if self.told:
            return self.told
        node, now = ray.get_runtime_context().get_node_id(), self.now
        return Life(os.getpid(), node, now.epoch_, now.metrics, list(now.notes), now.steps, self.waiting)

    def stop(self) -> None:
        """The running fit writes a checkpoint after its step and leaves."""
        self.now.stop = True


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


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
