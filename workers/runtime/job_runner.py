"""Run one job, and report to its tracking runs and its progress callback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.config.job import Job
from workers.diagnostics import faults
from workers.errors import ConclaveError, TrainingStopped
from workers.runtime.heartbeat import JobProgress
from workers.runtime.job_result import Failure, JobResult

if TYPE_CHECKING:
    import torch

    from workers.training.collectives import SingleProcess


@dataclass(frozen=True)
class JobContext:
    """The device, the processes and the tracking runs of a job.

    Attributes:
        uri: The tracking store, or None for no tracking.
        runs: Run ids of the job's members, in member order; empty for no tracking.
        note: Note about this machine for the user.
        is_isolated: Whether this machine's disk is private, so that the runs must have everything before the job ends.
        device: The device to train on; by default the first GPU, else the CPU.
        group: The processes that train together; by default this process alone.
    """

    uri: str | None = None
    runs: tuple[str, ...] = ()
    note: str = ""
    is_isolated: bool = False
    device: torch.device | None = None
    group: SingleProcess | None = None


def run_job(job: Job, progress: JobProgress, context: JobContext | None = None) -> JobResult:
    """Run one job.

    Args:
        job: The job.
        progress: Follows the training.
        context: The machine and the tracking runs; by default no tracking.
    """
    from workers.runtime import training_job
    from workers.tracking.job_run import JobRun

    context = context or JobContext()
    faults.set_job(job.label)
    run = JobRun(job, context.uri, context.runs, context.is_isolated) if context.uri and context.runs else None
    progress.tracking_run = run
    if context.note:
        progress.note(context.note)
    try:
        if run:
            run.download_teachers()
            run.download_checkpoint()
        training_job.train_job(job, progress, context.device, context.group)
    except ConclaveError as error:
        if run and isinstance(error, TrainingStopped):
            run.leave()
        return JobResult(Failure.of(error))
    except Exception as error:  # custom networks and libraries can raise anything
        return JobResult(Failure.of(error))
    else:
        return JobResult()
    finally:
        if run:
            run.close()
