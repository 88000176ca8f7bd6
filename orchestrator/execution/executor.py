"""The seam between the scheduler and whatever runs jobs: the `Executor` protocol, its events and its outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from workers.config.job import Job
from workers.errors import DivergedError, PreemptedError

Kind = Literal["started", "working", "epoch", "note", "retry", "done", "failed", "diverged", "unschedulable", "skipped"]
Cause = Literal["errors", "preemptions", "oom"]
MACHINE_GONE = "its machine went away"


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, for the live table, the log and the budget.

    Attributes:
        job: The job.
        kind: What happened. A job is `started` once it is submitted, maybe to a machine that has yet to come, and `working`
            once it runs on a machine.
        epoch: Number of finished epochs, for events of the kind `epoch`.
        metrics: Metrics of the last epoch.
        text: A sentence for people.
    """

    job: Job
    kind: Kind
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        manifest: The artifact's manifest; None where the job did not succeed.
        kind: How it ended.
        reason: Why it failed, in a sentence.
        cause: Which of the retry limits pays for another try; None where another try would end in the same way.
    """

    job: Job
    manifest: dict[str, Any] | None
    kind: Kind = "done"
    reason: str = ""
    cause: Cause | None = None


OnEvent = Callable[[Event], None]


class Executor(Protocol):
    """Runs jobs, and the fusion step, somewhere. It is the only seam between the scheduler and Ray."""

    def why_unschedulable(self, job: Job) -> str | None:
        """Return why the job can never run here, or None if it can."""

    def has_capacity(self, job: Job) -> bool:
        """Return whether the job could start now."""

    def submit(self, job: Job, uri: str | None, run: str | None) -> None:
        """Start a job. `uri` names the tracking store and `run` the run of the job in it, if there is one."""

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        """Return what happened since the last call. Wait for about `seconds` at most."""
        ...

    def stop(self, seconds: float) -> None:
        """Ask every running job to write a checkpoint and leave, and wait for `seconds` at most."""

    def call_on_head(self, function: Any, *arguments: Any) -> Any:
        """Call a function on the machine of the driver, in a process that can compute, and return its result."""

    def close(self) -> None:
        """End everything that this executor started."""


def classify_result(job: Job, result: dict[str, Any]) -> Outcome:
    """Turn what `run_job` returned into an outcome.

    Args:
        job: The job.
        result: The artifact's manifest, or `{"error": sentence, "kind": name of the exception or "error"}`.
    """
    if "error" not in result:
        return Outcome(job, result)
    if result["kind"] == DivergedError.__name__:
        return Outcome(job, None, "diverged", result["error"])
    if result["kind"] == PreemptedError.__name__:
        return Outcome(job, None, "failed", MACHINE_GONE, "preemptions")
    # A full device or a bad file is the same the next time; anything else may not be.
    return Outcome(job, None, "failed", result["error"], "errors" if result["kind"] == "error" else None)
