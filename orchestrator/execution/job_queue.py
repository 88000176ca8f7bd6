"""Jobs that wait: for a place to run, or for the trainings that they need."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence

from orchestrator.execution.executor import Executor
from orchestrator.execution.job_outcomes import Outcome
from workers.config.job import Job


class JobQueue:
    """Jobs that can start, in order and grouped by what they ask of a machine; and jobs that wait for other jobs.

    No step looks at every job, so a job of a plan of thousands costs as much as one of a plan of ten.

    Args:
        jobs: The jobs to run. What a job needs and is not among them counts as done.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        queued = {signature for job in jobs for signature in job.signatures}
        self._ready: dict[Hashable, deque[Job]] = {}
        self._missing: dict[str, set[str]] = {}  # key of a job -> signatures that it still needs
        self._needed_by: dict[str, list[Job]] = {}
        for job in jobs:
            missing = queued.intersection(job.teachers)
            if not missing:
                self.add(job)
                continue
            self._missing[job.key] = missing
            for signature in missing:
                self._needed_by.setdefault(signature, []).append(job)

    def __bool__(self) -> bool:
        """Return whether any job waits."""
        return bool(self._missing) or any(self._ready.values())

    def add(self, job: Job) -> None:
        """Put a job behind those that can start."""
        self._ready.setdefault((job.recipe.resources, job.train.threads), deque()).append(job)

    def pop_all(self, why: str | None) -> list[Outcome]:
        """Remove all jobs, as skipped for the reason `why`. Does nothing where there is no reason."""
        if why is None:
            return []
        jobs = {job.key: job for queue in self._ready.values() for job in queue}
        jobs |= {job.key: job for waiting in self._needed_by.values() for job in waiting if job.key in self._missing}
        self._ready.clear()
        self._missing.clear()
        return [Outcome(job, "skipped", why) for job in jobs.values()]

    def pop_unschedulable(self, executor: Executor) -> list[Outcome]:
        """Remove the jobs that no machine can hold. The first job of those that ask for the same answers for all of them."""
        outcomes = []
        for queue in self._ready.values():
            if queue and (reason := executor.why_unschedulable(queue[0])):
                outcomes += [Outcome(job, "unschedulable", reason) for job in queue]
                queue.clear()
        return outcomes

    def pop_startable(self, executor: Executor) -> Iterator[Job]:
        """Yield jobs as long as the executor has capacity. The caller submits each job before it asks for the next one."""
        for queue in self._ready.values():
            while queue and executor.has_capacity(queue[0]):
                yield queue.popleft()

    def mark_finished(self, outcome: Outcome) -> list[Job]:
        """Release the jobs that waited for this one.

        Returns:
            Jobs that can never start, because a job that they need did not succeed.
        """
        hopeless = []
        for signature in outcome.job.signatures:
            for job in self._needed_by.pop(signature, ()):
                missing = self._missing.get(job.key)
                if missing is None:
                    continue  # given up already, for another job that it needed
                missing.discard(signature)
                if outcome.kind != "done":
                    del self._missing[job.key]
                    hopeless.append(job)
                elif not missing:
                    del self._missing[job.key]
                    self.add(job)
        return hopeless
