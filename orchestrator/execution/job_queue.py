"""Queue of jobs that wait for a machine, or for the trainings that they need."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence

from orchestrator.execution.executor import Executor
from orchestrator.execution.job_outcomes import Outcome
from workers.config.job import Job


class JobQueue:
    """Jobs that can start, in order and grouped by their resources, and jobs that wait for other jobs.

    No step scans all jobs, so scheduling a job costs the same in a plan of thousands as in a plan of ten.

    Args:
        jobs: The jobs to run. Dependencies that are not among them count as done.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        queued = {signature for job in jobs for signature in job.signatures}
        self._ready: dict[Hashable, deque[Job]] = {}
        self._missing: dict[str, set[str]] = {}  # job key -> signatures that the job still needs
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
        """Return True if any job is waiting."""
        return bool(self._missing) or any(self._ready.values())

    def add(self, job: Job) -> None:
        """Append a job to the jobs that can start."""
        self._ready.setdefault((job.recipe.resources, job.train.threads), deque()).append(job)

    def pop_all(self, why: str | None) -> list[Outcome]:
        """Remove all jobs, and return them as skipped for the reason `why`. Do nothing if `why` is None."""
        if why is None:
            return []
        jobs = {job.key: job for queue in self._ready.values() for job in queue}
        jobs |= {job.key: job for waiting in self._needed_by.values() for job in waiting if job.key in self._missing}
        self._ready.clear()
        self._missing.clear()
        return [Outcome(job, "skipped", why) for job in jobs.values()]

    def pop_unschedulable(self, executor: Executor) -> list[Outcome]:
        """Remove the jobs that no machine can hold. Jobs with equal resources are checked once."""
        outcomes = []
        for queue in self._ready.values():
            if queue and (reason := executor.why_unschedulable(queue[0])):
                outcomes += [Outcome(job, "unschedulable", reason) for job in queue]
                queue.clear()
        return outcomes

    def pop_startable(self, executor: Executor) -> Iterator[Job]:
        """Yield jobs while the executor has capacity. The caller must submit each job before it takes the next."""
        for queue in self._ready.values():
            while queue and executor.has_capacity(queue[0]):
                yield queue.popleft()

    def mark_finished(self, outcome: Outcome) -> list[Job]:
        """Release the jobs that waited for a job that has ended.

        Returns:
            Jobs that can never start, because a job that they need did not succeed.
        """
        hopeless = []
        for signature in outcome.job.signatures:
            for job in self._needed_by.pop(signature, ()):
                missing = self._missing.get(job.key)
                if missing is None:
                    continue  # already given up, because another job that it needs failed
                missing.discard(signature)
                if outcome.kind != "done":
                    del self._missing[job.key]
                    hopeless.append(job)
                elif not missing:
                    del self._missing[job.key]
                    self.add(job)
        return hopeless
