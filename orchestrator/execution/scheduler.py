"""Run the jobs of a plan through an executor: start what fits, retry what failed, report what cannot run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.config.settings import Retries
from orchestrator.execution.executor import Event, Executor, OnEvent
from orchestrator.execution.job_outcomes import Cause, Outcome
from orchestrator.execution.job_queue import JobQueue
from workers.config.job import Job

POLL_SECONDS = 1.0


@dataclass
class Scheduler:
    """Runs jobs until each has an outcome. A job that fails for good never stops the others.

    Attributes:
        executor: Where jobs run.
        retries: How often a failed job is retried, by cause.
        on_event: Called with every event.
        tracking_uri: The tracking store that jobs write to, if any.
        runs_of: Returns the run ids of a job's members, in their order; empty if the tracking store is away.
        why_closed: Returns the reason that no further job may start, or None. Jobs that run finish in any case; those that
            still wait for a machine are withdrawn.
        when_all_run: Called before each poll while jobs run and none waits.
    """

    executor: Executor
    retries: Retries
    on_event: OnEvent
    tracking_uri: str | None = None
    runs_of: Callable[[Job], tuple[str, ...]] = lambda job: ()
    why_closed: Callable[[], str | None] = lambda: None
    when_all_run: Callable[[], None] = lambda: None

    outcomes: dict[str, Outcome] = field(default_factory=dict, init=False)

    def run(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        """Run all jobs, and return the outcome of each by its key."""
        queue, running = JobQueue(jobs), set[str]()
        failures: Counter[tuple[str, Cause | None]] = Counter()
        while queue or running:
            why_closed = self.why_closed()
            for job in self.executor.withdraw() if why_closed and running else ():
                running.discard(job.key)
                queue.add(job)  # to be skipped with the others
            for outcome in (*queue.pop_all(why_closed), *queue.pop_unschedulable(self.executor)):
                self._finish(queue, outcome)
            for job in queue.pop_startable(self.executor):
                running.add(job.key)
                self.executor.submit(job, self.tracking_uri, self.runs_of(job))
                self.on_event(Event(job, "started"))
            if running and not queue:
                self.when_all_run()
            for item in self.executor.poll(POLL_SECONDS) if running else ():
                if isinstance(item, Event):
                    self.on_event(item)
                    continue
                running.discard(item.job.key)
                self._retry_or_finish(queue, item, failures)
        return self.outcomes

    def _retry_or_finish(self, queue: JobQueue, outcome: Outcome, failures: Counter[tuple[str, Cause | None]]) -> None:
        failures[outcome.job.key, outcome.cause] += 1
        times = failures[outcome.job.key, outcome.cause]
        if outcome.cause and self.retries.allows(outcome.cause, times):
            self.on_event(Event(outcome.job, "retry", text=outcome.reason, trace=outcome.trace))
            queue.add(outcome.job)
            return
        repeated = outcome.cause and times > 1
        self._finish(queue, replace(outcome, reason=f"{outcome.reason} ({times} times)") if repeated else outcome)

    def _finish(self, queue: JobQueue, outcome: Outcome) -> None:
        """Record an outcome. Jobs that can no longer run because of it end too."""
        self.outcomes[outcome.job.key] = outcome
        self.on_event(Event(outcome.job, outcome.kind, text=outcome.reason, trace=outcome.trace))
        for job in queue.mark_finished(outcome):
            reason = f"{outcome.job.label}, from which it learns, did not succeed ({outcome.kind})"
            self._finish(queue, Outcome(job, "failed", reason))
