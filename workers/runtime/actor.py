"""Ray actors around `run_job`: a trainer actor runs one job at a time and reports its progress."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import ray

from workers.config.job import Job
from workers.diagnostics import faults
from workers.diagnostics.imports import import_all
from workers.diagnostics.memory import MemoryState, memory_state
from workers.errors import ConclaveError, EnvironmentMismatchError, FailureKind, IncompleteTransferError
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
    """Prepares a job for this machine: compares its environment with the head's, and fetches the data.

    Attributes:
        head: The head's environment: that of the driver's process.
        strict: Whether to refuse a machine with a different environment.
        disk: The driver's disk. A machine that cannot see it fetches the data, and sends its artifacts to the tracking
            store. None if all machines share a disk.
        has_server: Whether a tracking server can receive artifacts from another disk.
    """

    head: Environment = field(default_factory=environment)
    strict: bool = False
    disk: DriverDisk | None = None
    has_server: bool = True

    def __call__(self, job: Job) -> tuple[Job, str, bool]:
        """Prepare a job.

        Returns:
            The job with this machine's paths, a note for the user, and whether this machine's disk is private.

        Raises:
            ConclaveError: If this machine must not, or cannot, run the job.
        """
        differing = differences(self.head, environment())
        note = f"the machine {platform.node()} differs from the head: {'; '.join(differing)}" if differing else ""
        if note and self.strict:
            raise EnvironmentMismatchError(note)
        if self.disk is None or self.disk.is_visible():
            return job, note, False
        if not self.has_server:
            raise ConclaveError(f"the machine {platform.node()} {NO_WAY_BACK}")

        def read(name: str, offset: int) -> bytes:
            return ray.get(serve_chunk.remote(job, name, offset))  # type: ignore[no-any-return]

        try:
            return localize_job(job, read), note, True
        except OSError as error:
            raise IncompleteTransferError(f"the machine {platform.node()} got no data: {error}") from error


@ray.remote(max_restarts=0, max_concurrency=4)
class TrainerActor:
    """Runs one job after another. Other threads serve `heartbeat`, `stop`, and what distributed jobs report.

    Args:
        leads: Whether its jobs run in several processes, the first of which reports to this actor.
    """

    def __init__(self, leads: bool = False) -> None:
        self.leads = leads
        self.progress = JobProgress()
        self.lock = threading.Lock()
        self.reported: Heartbeat | None = None  # last heartbeat from the first of several processes
        self.reported_at = 0.0
        self.failure: Failure | None = None  # of the first of several processes
        self.is_prepared = False

    def prepare(self) -> None:
        """Import everything that a training needs. The other calls answer meanwhile, so an import that hangs is noticed."""
        with self.lock:
            faults.fault_point("trainer.prepare")
            import_all(["workers.runtime.training_job"])
            self.is_prepared = True

    def run(self, job: Job, uri: str | None, runs: tuple[str, ...], localizer: JobLocalizer, gpus: float) -> JobResult:
        """Run a job with `gpus` GPUs. Return its result, or a failure if this machine cannot run it."""
        with self.lock:
            self.progress, self.reported, self.failure = JobProgress(), None, None
            faults.set_job(job.label)
            localizer = replace(localizer, has_server=str(uri).startswith("http"))
            if job.recipe.resources.processes > 1:
                return self._run_distributed(job, JobContext(uri, runs), gpus, localizer)
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
            if self.failure:
                return JobResult(self.failure)
            is_lost = self.reported is not None and self.reported.node not in _living_nodes()
            text = " ".join(str(error).split())[-300:]  # Ray Train's messages are pages long and end with the cause
            kind = FailureKind.PREEMPTED if is_lost else FailureKind.UNEXPECTED
            return JobResult(replace(Failure.of(error), kind=kind, sentence=f"{type(error).__name__}: {text}"))

    def report(self, heartbeat: Heartbeat) -> bool:
        """Store the heartbeat of the first of several processes. Return whether they should stop."""
        self.reported, self.reported_at = heartbeat, time.monotonic()
        return self.progress.stop_requested

    def fail(self, failure: Failure) -> None:
        """Store the failure of the first of several processes, which then ends."""
        self.failure = failure

    def heartbeat(self) -> Heartbeat:
        """Return a heartbeat. For several processes it is the first process's; until it reports, they are waiting."""
        faults.fault_point("trainer.heartbeat")
        if reported := self.reported:
            return replace(reported, age=time.monotonic() - self.reported_at)
        heartbeat = self.progress.heartbeat(os.getpid(), ray.get_runtime_context().get_node_id())
        return replace(heartbeat, is_waiting=self.leads, is_preparing=not self.is_prepared)

    def stop(self) -> None:
        """Ask the running training to write a checkpoint after its current step, and stop."""
        self.progress.stop_requested = True


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]  # Ray's own
def end_process(pid: int) -> None:
    """Kill a Ray process on this machine: `ray.kill` leaves a stopped process alive, with its memory.

    If the process has ended, its id may belong to another program, which is not killed.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if any(word.startswith("ray::") for word in process.cmdline()[:1]):
            process.kill()


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]  # Ray's own
def check_alive() -> MemoryState:
    """Return the state of the machine's memory. Only a living machine can answer."""
    return memory_state()


@ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})  # type: ignore[untyped-decorator]  # Ray's own
def serve_chunk(job: Job, name: str, offset: int) -> bytes:
    """Return a chunk of a file that a job reads. Runs on the head, where the driver packed the data."""
    return read_chunk(job, name, offset)


@ray.remote(max_restarts=0, max_concurrency=2)
class FusionActor:
    """Runs the fusion step on its machine. A second thread serves `heartbeat`.

    Args:
        modules: Modules to import before the first call.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        import_all(modules)

    def heartbeat(self) -> int:
        """Return the process id, as a sign of life."""
        return os.getpid()

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call a function that the orchestrator sent, with its arguments."""
        return function(*arguments)
