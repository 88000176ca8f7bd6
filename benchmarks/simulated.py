"""An executor whose jobs only take time, by a clock of its own: what the scheduler adds to thousands of jobs shows in seconds."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable

from orchestrator.execution.executor import Event
from orchestrator.execution.inline_executor import InlineExecutor
from orchestrator.execution.job_outcomes import Outcome
from workers.config.job import Job


class SimulatedExecutor(InlineExecutor):
    """Runs jobs of `seconds` in `slots`. Its clock jumps to the next end of a job, and runs with the real one between two polls.

    So `now` is what the jobs would have taken, with all that the scheduler really took.

    Args:
        slots: How many jobs run at once.
        seconds: How long each takes.
    """

    def __init__(self, slots: int, seconds: float) -> None:
        super().__init__()
        self.slots, self.seconds, self.now = slots, seconds, 0.0
        self._ends: list[tuple[float, int, Job]] = []
        self._count = 0
        self._left_at = time.perf_counter()

    def _tick(self) -> None:
        """Add the real time that has passed since the clock was last looked at."""
        at = time.perf_counter()
        self.now, self._left_at = self.now + at - self._left_at, at

    def has_capacity(self, job: Job) -> bool:
        """Return whether a slot is free."""
        return len(self._ends) < self.slots

    def submit(self, job: Job, uri: str | None, runs: tuple[str, ...]) -> None:
        """Start a job."""
        self._tick()
        self._count += 1
        heapq.heappush(self._ends, (self.now + self.seconds, self._count, job))

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        """Return the jobs that have ended by now, or by the next end within so many seconds."""
        self._tick()
        self.now = max(self.now, min(self._ends[0][0], self.now + seconds))
        ended: list[Event | Outcome] = []
        while self._ends and self._ends[0][0] <= self.now:
            job = heapq.heappop(self._ends)[2]
            ended += [Event(job, "working"), Outcome(job)]
        self._left_at = time.perf_counter()
        return ended

    def stop(self, seconds: float) -> None:
        """Forget all jobs."""
        self._ends.clear()
