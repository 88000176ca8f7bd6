"""The thin Ray shell around `run_job`: one trainer actor runs one job at a time, and can be asked how far it is."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray

from workers.config.job import Job
from workers.diagnostics import faults
from workers.diagnostics.imports import import_all
from workers.errors import ConclaveError, EnvironmentMismatchError, FailureKind, NotArrivedError
from workers.runtime.environment import Environment, differences, environment
from workers.runtime.heartbeat import Heartbeat, JobProgress
from workers.runtime.job_result import Failure, JobResult
from workers.runtime.job_runner import JobContext, run_job
from workers.runtime.localize import DriverDisk, localize_job, read_chunk

NO_WAY_BACK = (
    "does not share the driver's disk, so its trainings can only come back by a tracking server, and `tracking.uri` names none. "
    "Name one, or put --home on a shared disk."
)


@dataclass(frozen=True)
class JobLocalizer:
    """Prepares a job for the machine where it happens to be: compares the machine with the head, and brings the data.

    Attributes:
        head: The environment of the head.
        strict: Whether a machine with another environment is refused.
        disk: The driver's disk. A machine that does not see it borrows the data, and sends what it makes to the tracking
            store. None where every machine sees the same disk.
        has_server: Whether a tracking server can take what is made on another disk.
    """

    head: Environment
    strict: bool
    disk: DriverDisk | None = None
    has_server: bool = True

    def __call__(self, job: Job) -> tuple[Job, str, bool]:
        """Prepare a job.

        Returns:
            The job as this machine has to do it, a note for people, and whether nobody else sees this machine's disk.

        Raises:
            ConclaveError: If this machine must not, or cannot, do the job.
        """
        differing = differences(self.head, environment())
        note = f"the machine {platform.node()} is not like the head: {'; '.join(differing)}" if differing else ""
        if note and self.strict:
            raise EnvironmentMismatchError(note)
        if self.disk is None or self.disk.is_visible():
            return job, note, False
        if not self.has_server:
            raise ConclaveError(f"the machine {platform.node()} {NO_WAY_BACK}")

        def read(name: str, offset: int) -> bytes:
            return ray.get(serve_chunk.remote(job.store, name, offset))  # type: ignore[no-any-return]

        try:
            return localize_job(job, read), note, True
        except OSError as error:
            raise NotArrivedError(f"the machine {platform.node()} got no data: {error}") from error


@dataclass(frozen=True)
class Placement:
    """Where a trainer does a job.

    Attributes:
        localizer: Prepares the job for the trainer's machine.
        gpus: GPUs that the trainer has.
    """

    localizer: JobLocalizer
    gpus: float


@ray.remote(max_restarts=0, max_concurrency=4)
class TrainerActor:
    """Runs one job after another. Other threads answer `heartbeat`, take `stop`, and hear of jobs of several processes.

    It imports what a training needs before it takes its first job.

    Args:
        leads: Whether its jobs are done by several processes, the first of which reports to it.
    """

    def __init__(self, leads: bool = False) -> None:
        self.leads = leads
        self.progress = JobProgress()
        self.lock = threading.Lock()
        self.reported: Heartbeat | None = None  # by the first of several processes
        self.reported_at = 0.0
        import_all(["workers.runtime.training_job"])  # in no thread: what is imported twice at once may be seen half done

    def run(self, job: Job, uri: str | None, runs: tuple[str, ...], placement: Placement) -> JobResult:
        """Run a job; return what `run_job` returns, or a failure where this machine cannot do the job."""
        with self.lock:
            self.progress, self.reported = JobProgress(), None
            faults.set_job(job.label)
            localizer = replace(placement.localizer, has_server=str(uri).startswith("http"))
            if job.recipe.resources.processes > 1:
                return self._run_distributed(job, JobContext(uri, runs), placement.gpus, localizer)
            try:
                local_job, note, is_isolated = localizer(job)
            except ConclaveError as error:
                return JobResult(Failure.of(error))
            return run_job(local_job, self.progress, JobContext(uri, runs, note, is_isolated))

    def _run_distributed(self, job: Job, context: JobContext, gpus: float, localizer: JobLocalizer) -> JobResult:
        try:
            from workers.runtime.distributed import DistributedJob, train_distributed

            return train_distributed(DistributedJob(job, context, gpus, localizer, ray.get_runtime_context().current_actor))
        except Exception as error:  # Ray Train raises whatever its workers raised
            is_lost = self.reported is not None and self.reported.node not in _living_nodes()
            text = " ".join(str(error).split())[-300:]  # Ray Train's messages are pages, and end with the cause
            kind = FailureKind.PREEMPTED if is_lost else FailureKind.UNEXPECTED
            return JobResult(replace(Failure.of(error), kind=kind, sentence=f"{type(error).__name__}: {text}"))

    def report(self, heartbeat: Heartbeat) -> bool:
        """Take the heartbeat of the first of several processes; return whether they are to stop."""
        self.reported, self.reported_at = heartbeat, time.monotonic()
        return self.progress.stop_requested

    def heartbeat(self) -> Heartbeat:
        """Return a sign of life: of several processes, the first one's. Until that reports, they wait or start."""
        if reported := self.reported:
            return replace(reported, age=time.monotonic() - self.reported_at)
        return self.progress.heartbeat(os.getpid(), ray.get_runtime_context().get_node_id(), is_waiting=self.leads)

    def stop(self) -> None:
        """Make the running training write a checkpoint after its step, and leave."""
        self.progress.stop_requested = True


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]  # Ray's own
def end_process(pid: int) -> None:
    """Kill a process of Ray on this machine: `ray.kill` leaves a stopped one alive, with its memory.

    Where the process is gone, its id may have gone to another one, which is left alone.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if any(word.startswith("ray::") for word in process.cmdline()[:1]):
            process.kill()


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]  # Ray's own
def is_there() -> bool:
    """Return True, which only a machine that still lives can do."""
    return True


@ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})  # type: ignore[untyped-decorator]  # Ray's own
def serve_chunk(store: Path, name: str, offset: int) -> bytes:
    """Return a piece of a packed store's file. Runs on the head, where the driver has packed the data."""
    return read_chunk(store, name, offset)


@ray.remote(max_restarts=0, max_concurrency=2)
class FusionActor:
    """Runs the fusion step on the machine where it was placed. Another thread answers `heartbeat`.

    Args:
        modules: What it imports before it takes a call.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        import_all(modules)

    def heartbeat(self) -> int:
        """Give a sign of life: the process id."""
        return os.getpid()

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call a function, which the orchestrator handed over with its arguments."""
        return function(*arguments)
