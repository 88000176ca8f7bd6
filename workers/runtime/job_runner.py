"""Run one job, and report it to its tracking run and to whoever follows its progress."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.config.job import Job
from workers.diagnostics import faults
from workers.errors import ConclaveError, TrainingStopped
from workers.runtime.heartbeat import JobProgress
from workers.storage.artifacts import MemberArtifact

if TYPE_CHECKING:
    import torch

    from workers.training.collectives import SingleProcess


@dataclass(frozen=True)
class JobContext:
    """Where a job runs and what it writes to.

    Attributes:
        uri: The tracking store, or None for no tracking.
        run: The job's run in the tracking store, or None for no tracking.
        note: Something that people should know of this machine.
        is_isolated: Whether nobody else sees this machine's disk, so that the run must have everything before the job ends.
        device: The device to train on; the first GPU, or the CPU, where left out.
        group: The processes that train together; this process alone where left out.
    """

    uri: str | None = None
    run: str | None = None
    note: str = ""
    is_isolated: bool = False
    device: torch.device | None = None
    group: SingleProcess | None = None


def run_job(job: Job, progress: JobProgress, context: JobContext | None = None) -> dict[str, Any]:
    """Run one job.

    Args:
        job: The job.
        progress: Follows the training.
        context: The machine and the tracking run; no tracking where left out.

    Returns:
        The artifact's manifest. Where the job failed, `{"error": sentence, "kind": name}`; the kind is the name of a
        ConclaveError, or "error" for any other exception.
    """
    from workers.runtime import training_job
    from workers.tracking.job_run import JobRun

    context = context or JobContext()
    faults.set_job(job.label)
    artifact = MemberArtifact.in_home(job.home, job.signature)
    run = JobRun(job, context.uri, context.run, context.is_isolated) if context.uri and context.run else None
    progress.tracking_run = run
    if context.note:
        progress.note(context.note)
    try:
        if run:
            run.download_teachers()
            run.download_checkpoint()
        manifest = training_job.train_job(job, progress, context.device, context.group)
        if run:
            run.finish(artifact.folder, manifest)
    except ConclaveError as error:
        if run and isinstance(error, TrainingStopped):
            run.leave()
        return {"error": str(error), "kind": type(error).__name__}
    except Exception as error:  # whatever a user's network and a library can raise
        return {"error": f"{type(error).__name__}: {error}", "kind": "error", "trace": traceback.format_exc()}
    else:
        return manifest
    finally:
        if run:
            run.close()
