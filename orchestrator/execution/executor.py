"""The interface between the scheduler and what runs the jobs: the `Executor` protocol and its events.

An executor is any class with these methods. `tests/orchestrator/test_executors.py` is the contract test for all executors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from orchestrator.execution.job_outcomes import Kind, Outcome
from workers.config.job import Job


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, for the live table, the log and the budget.

    Attributes:
        job: The job.
        kind: What happened. A job is `started` when it is submitted, perhaps before its machine exists, and `working` when it
            runs on a machine. `published` comes once for each member that the job finishes.
        epoch: Number of finished epochs, for `epoch` events.
        metrics: Metrics of the last epoch.
        text: A sentence for the user; the member's name for `published` events.
        trace: A traceback, for the job's log.
    """

    job: Job
    kind: Kind
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    text: str = ""
    trace: str = ""


OnEvent = Callable[[Event], None]
Answer = TypeVar("Answer")


class Executor(Protocol):
    """Runs jobs and the fusion step. It is the only interface between the scheduler and Ray.

    For each submitted job, `poll` yields any number of events (`working` once the job runs, `epoch`, `published` and `note`),
    then exactly one Outcome. After its outcome, a job may be submitted again. A failed job or a dead process is an outcome,
    never an exception. An exception ends the sweep, except a RayLostError after which `recover` makes the executor usable again.
    """

    def why_unschedulable(self, job: Job) -> str | None:
        """Return the reason that the job can never run here, or None if it can."""

    def has_capacity(self, job: Job) -> bool:
        """Return whether the job could start now."""

    def submit(self, job: Job, uri: str | None, runs: tuple[str, ...]) -> None:
        """Start a job.

        Args:
            job: The job.
            uri: URI of the tracking store, or None.
            runs: Run ids of the job's members, in their order; empty if the job is not tracked.
        """

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        """Return the events and outcomes since the last call, waiting for about `seconds` at most."""
        ...

    def withdraw(self) -> list[Job]:
        """Take back the submitted jobs that still wait for a machine, and return them. They have no outcome."""
        ...

    def stop(self, seconds: float) -> None:
        """Ask every running job to write a checkpoint and exit, and wait for `seconds` at most."""

    def prepare_on_head(self, modules: Sequence[str]) -> None:
        """Prepare for a `call_on_head` that needs these modules, so that it starts sooner."""

    def call_on_head(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call a function in a compute process on the driver's machine, and return its result."""

    def recover(self) -> bool:
        """Make this executor usable again after a RayLostError; its jobs are lost. Return True on success."""
        ...

    def close(self) -> None:
        """Stop everything that this executor started."""
