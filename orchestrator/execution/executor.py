"""The seam between the scheduler and whatever runs jobs: the `Executor` protocol and its events.

An executor is any class with these methods. `tests/orchestrator/test_executors.py` is the contract that each one passes.
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
        kind: What happened. A job is `started` once it is submitted, maybe to a machine that has yet to come, and `working`
            once it runs on a machine. It is `published` each time that one of its members is made.
        epoch: Number of finished epochs, for events of the kind `epoch`.
        metrics: Metrics of the last epoch.
        text: A sentence for people; the member's name, for events of the kind `published`.
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
    """Runs jobs, and the fusion step, somewhere. It is the only seam between the scheduler and Ray.

    For each submitted job, `poll` yields exactly one Outcome in the end; before it come any number of events: `working` once the
    job runs, `epoch`, `published` and `note`. A job whose outcome has come may be submitted again. Nothing that a job does,
    and no death of a process, is raised by an executor; what is raised ends the sweep. After a RayLostError, `recover` may make
    it usable again.
    """

    def why_unschedulable(self, job: Job) -> str | None:
        """Return why the job can never run here, or None if it can."""

    def has_capacity(self, job: Job) -> bool:
        """Return whether the job could start now."""

    def submit(self, job: Job, uri: str | None, runs: tuple[str, ...]) -> None:
        """Start a job.

        Args:
            job: The job.
            uri: The tracking store, if there is one.
            runs: The runs of the job's members in it, in their order; empty where there are none.
        """

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        """Return what happened since the last call. Wait for about `seconds` at most."""
        ...

    def stop(self, seconds: float) -> None:
        """Ask every running job to write a checkpoint and leave, and wait for `seconds` at most."""

    def prepare_on_head(self, modules: Sequence[str]) -> None:
        """Get ready for a call of a function that needs these modules, so that the call has less to wait for."""

    def call_on_head(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call a function on the machine of the driver, in a process that can compute, and return its result."""

    def recover(self) -> bool:
        """Make this executor usable again after a RayLostError, without the jobs it had. Return whether that could be done."""
        ...

    def close(self) -> None:
        """End everything that this executor started."""
