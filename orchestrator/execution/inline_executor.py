"""Run jobs in this process, one after another: for tests and debuggers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orchestrator.execution.executor import Answer, Event
from orchestrator.execution.job_outcomes import Outcome, outcome_of_result
from workers.config.job import Job


class InlineExecutor:
    """Holds one job at a time, and runs it in this process at the next poll."""

    def __init__(self) -> None:
        self._submitted: tuple[Job, str | None, tuple[str, ...]] | None = None

    def why_unschedulable(self, job: Job) -> str | None:
        """Return None: this process takes every job."""
        return None

    def has_capacity(self, job: Job) -> bool:
        """Return True if no job is waiting."""
        return self._submitted is None

    def submit(self, job: Job, uri: str | None, runs: tuple[str, ...]) -> None:
        """Keep a job until the next poll."""
        self._submitted = (job, uri, runs)

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        """Run the submitted job, and yield its events and its outcome."""
        from workers.runtime.heartbeat import JobProgress
        from workers.runtime.job_runner import JobContext, run_job

        if self._submitted is None:
            return
        job, uri, runs = self._submitted
        self._submitted = None
        progress = JobProgress()
        yield Event(job, "working")
        result = run_job(job, progress, JobContext(uri, runs))
        yield Event(job, "epoch", progress.epochs_done, progress.metrics)
        yield from (Event(job, "note", text=text) for text in progress.notes)
        yield from (Event(job, "published", text=name) for name in progress.published)
        yield outcome_of_result(job, result)

    def withdraw(self) -> list[Job]:
        """Return no job: a submitted job runs at once."""
        return []

    def stop(self, seconds: float) -> None:
        """Forget the submitted job."""
        self._submitted = None

    def prepare_on_head(self, modules: Sequence[str]) -> None:
        """Do nothing: `call_on_head` imports what it needs."""

    def call_on_head(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call the function in this process."""
        return function(*arguments)

    def recover(self) -> bool:
        """Return False: this executor uses no Ray that could be restarted."""
        return False

    def close(self) -> None:
        """Forget the submitted job."""
        self._submitted = None
