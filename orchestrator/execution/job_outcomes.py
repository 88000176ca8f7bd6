"""How jobs end: their outcomes, and which retry limit each failure counts against."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from workers.config.job import Job
from workers.errors import FailureKind
from workers.runtime.job_result import Failure, JobResult

Kind = Literal[
    "started", "working", "epoch", "published", "note", "retry", "done", "failed", "diverged", "unschedulable", "skipped"
]
Cause = Literal["errors", "preemptions", "oom"]

REASON_CHARACTERS = 300
MACHINE_GONE = "its machine went away"
MACHINE_LEAVES = "its machine is being taken away; a checkpoint is written"
OUT_OF_MEMORY = "OOM: killed because the machine ran out of memory; give the job more memory"


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


class Death(Enum):
    """How a trainer's process ended, if it returned nothing."""

    CRASHED = "it died, but its machine is alive"
    MACHINE = "its machine went away"
    MEMORY = "it was killed because its machine ran out of memory"
    HUNG = "it stopped responding, and was killed"


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
    kind, reason, cause = _meaning(failure, is_leaving)
    return Outcome(job, kind, reason, cause, failure.trace)


def _meaning(failure: Failure, is_leaving: bool) -> tuple[Kind, str, Cause | None]:
    """Return the outcome's kind, its reason and its retry limit: None if a retry would fail in the same way."""
    match failure.kind:
        case FailureKind.PREEMPTED:
            return "failed", MACHINE_GONE, "preemptions"
        case FailureKind.STOPPED if is_leaving:
            return "failed", MACHINE_LEAVES, "preemptions"
        case FailureKind.DIVERGED:
            return "diverged", failure.sentence, None
        case FailureKind.UNEXPECTED:
            return "failed", failure.sentence, "errors"
        case FailureKind.PERMANENT | FailureKind.ENVIRONMENT | FailureKind.STOPPED:
            return "failed", failure.sentence, None


def outcome_of_death(job: Job, death: Death, text: str) -> Outcome:
    """Return the outcome of a job whose trainer process died.

    Args:
        job: The job.
        death: How the process ended.
        text: Ray's error, or why the trainer counts as hung.
    """
    match death:
        case Death.MACHINE:
            return Outcome(job, "failed", MACHINE_GONE, "preemptions", text)
        case Death.MEMORY:
            return Outcome(job, "failed", OUT_OF_MEMORY, "oom", text)
        case Death.HUNG:
            return Outcome(job, "failed", f"{text}; the trainer was ended", "errors")
        case Death.CRASHED:
            return Outcome(job, "failed", f"the trainer died: {text[:REASON_CHARACTERS]}", "errors", text)
