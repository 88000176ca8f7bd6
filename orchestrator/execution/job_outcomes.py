"""How jobs end: their outcomes, and which retry limit each failure counts against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workers.config.job import Job
from workers.errors import FailureKind
from workers.runtime.job_result import JobResult

Kind = Literal[
    "started", "working", "epoch", "published", "note", "retry", "done", "failed", "diverged", "unschedulable", "skipped"
]
Cause = Literal["errors", "preemptions", "oom"]

REASON_CHARACTERS = 300
MACHINE_GONE = "its machine went away"
MACHINE_LEAVES = "its machine is being taken away; a checkpoint is written"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        kind: How it ended.
        reason: Why it failed, in a sentence.
        cause: Retry limit that a retry counts against; None if a retry would fail in the same way.
        trace: Traceback of the failure, for the job's log.
    """

    job: Job
    kind: Kind = "done"
    reason: str = ""
    cause: Cause | None = None
    trace: str = ""


def outcome_of_result(job: Job, result: JobResult, is_leaving: bool = False) -> Outcome:
    """Return the outcome of a job that returned a result.

    Args:
        job: The job.
        result: What `run_job` returned.
        is_leaving: Whether the job was stopped because its machine is being taken away.
    """
    failure = result.failure
    if failure is None:
        return Outcome(job)
    match failure.kind:
        case FailureKind.PREEMPTED:
            return outcome_of_death(job, "preemptions", failure.trace)
        case FailureKind.STOPPED if is_leaving:
            return Outcome(job, "failed", MACHINE_LEAVES, "preemptions", failure.trace)
        case FailureKind.DIVERGED:
            return Outcome(job, "diverged", failure.sentence, None, failure.trace)
        case FailureKind.UNEXPECTED:
            return Outcome(job, "failed", failure.sentence, "errors", failure.trace)
        case FailureKind.PERMANENT | FailureKind.ENVIRONMENT | FailureKind.STOPPED:
            return Outcome(job, "failed", failure.sentence, None, failure.trace)


def outcome_of_death(job: Job, cause: Cause, text: str) -> Outcome:
    """Return the outcome of a job whose trainer process died.

    Args:
        job: The job.
        cause: "preemptions" if its machine went away, "oom" if the machine ran out of memory, else "errors".
        text: Ray's error; for "oom" what is known of the limit.
    """
    crashed = f"the trainer died: {text[:REASON_CHARACTERS]}"
    reasons: dict[Cause, str] = {"preemptions": MACHINE_GONE, "oom": _out_of_memory(job, text), "errors": crashed}
    return Outcome(job, "failed", reasons[cause], cause, text)


def _out_of_memory(job: Job, text: str) -> str:
    """Say that a trainer needed more memory than there was, and what needs less."""
    advice = f"lower train.batch_size ({job.train.batch_size}), or let fewer trainings run at once (`--cpus`, resources.cpus)"
    return f"out of memory, {text[:REASON_CHARACTERS]}: {advice}"
