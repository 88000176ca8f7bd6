"""Jobs that wait: for a place to run, or for the trainings that they need."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence

from orchestrator.execution.executor import Executor, Outcome
from workers.config.job import Job


class JobQueue:
    """Jobs that can start, in order and grouped by what they ask of a machine; and jobs that wait for other jobs.

    No step looks at every job, so a job of a plan of thousands costs as much as one of a plan of ten.

    Args:
        jobs: The jobs to run. What a job needs and is not among them counts as done.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        queued = {job.signature for job in jobs}
        self._ready: dict[Hashable, deque[Job]] = {}
        self._missing: dict[str, set[str]] = {}  # signature of a job -> signatures that it still needs
        self._needed_by: dict[str, list[Job]] = {}
        for job in jobs:
            missing = queued.intersection(job.needs)
            if not missing:
                self.add(job)
                continue
            self._missing[job.signature] = missing
            for signature in missing:
                self._needed_by.setdefault(signature, []).append(job)

    def __bool__(self) -> bool:
        """Return whether any job waits."""
        return bool(self._missing) or any(self._ready.values())

    def add(self, job: Job) -> None:
        """Put a job behind those that can start."""
        self._ready.setdefault((job.member.resources, job.train.threads), deque()).append(job)

    def pop_all(self, why: str | None) -> list[Outcome]:
        """Remove all jobs, as skipped for the reason `why`. Does nothing where there is no reason."""
        if why is None:
            return []
        jobs = {job.signature: job for queue in self._ready.values() for job in queue}
        jobs |= {job.signature: job for waiting in self._needed_by.values() for job in waiting if job.signature in self._missing}
        self._ready.clear()
        self._missing.clear()
        return [Outcome(job, None, "skipped", why) for job in jobs.values()]

    def pop_unschedulable(self, executor: Executor) -> list[Outcome]:
        """Remove the jobs that no machine can hold. The first job of those that ask for the same answers for all of them."""
        outcomes = []
        for queue in self._ready.values():
            if queue and (reason := executor.why_unschedulable(queue[0])):
                outcomes += [Outcome(job, None, "unschedulable", reason) for job in queue]
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
        for job in self._needed_by.pop(outcome.job.signature, ()):
            missing = self._missing.get(job.signature)
            if missing is None:
                continue  # given up already, for another job that it needed
            missing.discard(outcome.job.signature)
            if outcome.kind != "done":
                del self._missing[job.signature]
                hopeless.append(job)
            elif not missing:
                del self._missing[job.signature]
                self.add(job)
        return hopeless
