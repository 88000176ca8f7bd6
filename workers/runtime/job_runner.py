"""Run one job, and report it to its tracking runs and to whoever follows its progress."""

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
    """Where a job runs and what it writes to.

    Attributes:
        uri: The tracking store, or None for no tracking.
        runs: The runs of the job's members in the tracking store, in their order; empty for no tracking.
        note: Something that people should know of this machine.
        is_isolated: Whether nobody else sees this machine's disk, so that the runs must have everything before the job ends.
        device: The device to train on; the first GPU, or the CPU, where left out.
        group: The processes that train together; this process alone where left out.
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
        context: The machine and the tracking runs; no tracking where left out.
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
    except Exception as error:  # whatever a user's network and a library can raise
        return JobResult(Failure.of(error))
    else:
        return JobResult()
    finally:
        if run:
            run.close()
