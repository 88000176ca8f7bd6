"""Run the jobs of a plan through an executor: start what fits, retry what failed, report what cannot run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.config.team import Retries
from orchestrator.execution.executor import Cause, Event, Executor, OnEvent, Outcome
from orchestrator.execution.job_queue import JobQueue
from workers.config.job import Job

POLL_SECONDS = 0.5


@dataclass
class Scheduler:
    """Runs jobs until each has an outcome. A job that fails for good never stops the others.

    Attributes:
        executor: Where jobs run.
        retries: How often a failed job is tried again, by cause.
        on_event: Is told of everything that happens to a job.
        tracking_uri: The tracking store that jobs write to, if any.
        run_id_of: Returns a job's run in the tracking store, or None where it has none.
        why_closed: Returns why no further job may start, or None. Jobs that run already end in any case.
    """

    executor: Executor
    retries: Retries
    on_event: OnEvent
    tracking_uri: str | None = None
    run_id_of: Callable[[Job], str | None] = lambda job: None
    why_closed: Callable[[], str | None] = lambda: None

    outcomes: dict[str, Outcome] = field(default_factory=dict, init=False)

    def run(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        """Run all jobs, and return the outcome of each by its signature."""
        queue, running = JobQueue(jobs), set[str]()
        failures: Counter[tuple[str, Cause | None]] = Counter()
        while queue or running:
            for outcome in (*queue.pop_all(self.why_closed()), *queue.pop_unschedulable(self.executor)):
                self._finish(queue, outcome)
            for job in queue.pop_startable(self.executor):
                running.add(job.signature)
                self.executor.submit(job, self.tracking_uri, self.run_id_of(job))
                self.on_event(Event(job, "started"))
            for item in self.executor.poll(POLL_SECONDS) if running else ():
                if isinstance(item, Event):
                    self.on_event(item)
                    continue
                running.discard(item.job.signature)
                self._retry_or_finish(queue, item, failures)
        return self.outcomes

    def _retry_or_finish(self, queue: JobQueue, outcome: Outcome, failures: Counter[tuple[str, Cause | None]]) -> None:
        failures[outcome.job.signature, outcome.cause] += 1
        times = failures[outcome.job.signature, outcome.cause]
        if outcome.cause and self.retries.allows(outcome.cause, times):
            self.on_event(Event(outcome.job, "retry", text=outcome.reason))
            queue.add(outcome.job)
            return
        repeated = outcome.cause and times > 1
        self._finish(queue, replace(outcome, reason=f"{outcome.reason} ({times} times)") if repeated else outcome)

    def _finish(self, queue: JobQueue, outcome: Outcome) -> None:
        """Record an outcome. Jobs that can no longer run because of it end too."""
        self.outcomes[outcome.job.signature] = outcome
        self.on_event(Event(outcome.job, outcome.kind, text=outcome.reason))
        for job in queue.mark_finished(outcome):
            relation = "from which it learns" if job.teachers else "from which it goes on"
            self._finish(queue, Outcome(job, None, "failed", f"{outcome.job.label}, {relation}, is {outcome.kind}"))
