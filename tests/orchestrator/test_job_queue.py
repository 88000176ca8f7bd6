"""The job queue never loses a job, and never gives one twice, whatever the plan and whatever happens to the jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.execution.executor import Event, Executor
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.execution.job_queue import JobQueue
from tests.factories import job
from workers.config.job import Job


class RoomFor(Executor):
    """An executor with room for so many jobs at once, on machines that hold jobs of at most two cores."""

    def __init__(self, places: int) -> None:
        self.places, self.running = places, list[Job]()

    def prepare(self, *_: Any) -> None: ...

    def withdraw(self) -> list[Job]:
        return []

    def has_capacity(self, job: Job) -> bool:
        return len(self.running) < self.places

    def why_unschedulable(self, job: Job) -> str | None:
        return "too large" if (job.recipe.resources.cpus or 1) > 2 else None

    def submit(self, job: Job, *_: Any) -> None:
        self.running.append(job)

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        return []

    def stop(self, seconds: float) -> None: ...

    def prepare_on_head(self, modules: Sequence[str]) -> None: ...

    def call_on_head(self, function: Any, *arguments: Any) -> Any: ...

    def recover(self) -> bool:
        return False

    def close(self) -> None: ...


@st.composite
def plans(draw: st.DrawFn) -> list[Job]:
    """Up to twelve jobs. Each publishes one to three members, may learn from earlier ones, and asks for one to three cores."""
    jobs: list[Job] = []
    for number in range(draw(st.integers(1, 12))):
        names = [signature for earlier in jobs for signature in earlier.signatures]
        teachers = draw(st.lists(st.sampled_from(names or [""]), unique=True, max_size=3)) if names else []
        cpus, snapshots = draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 3))
        jobs.append(job(f"j{number}", tuple(teachers), cpus, snapshots=snapshots))
    return jobs


@given(plans(), st.integers(1, 3), st.data())
def test_every_job_of_a_plan_ends_exactly_once(jobs: list[Job], places: int, data: st.DataObject) -> None:
    queue, executor = JobQueue(jobs), RoomFor(places)
    ended: list[str] = []

    def end(outcome: Outcome) -> None:
        ended.append(outcome.job.key)
        for hopeless in queue.mark_finished(outcome):
            end(Outcome(hopeless, "failed", "what it needs failed"))

    while queue or executor.running:
        if data.draw(st.integers(0, 9)) == 0:
            for outcome in queue.pop_all("the budget is used up"):
                end(outcome)
        for outcome in queue.pop_unschedulable(executor):
            end(outcome)
        for startable in queue.pop_startable(executor):
            executor.submit(startable)
        if not executor.running:
            assert not queue, "jobs wait, and nothing will ever release them"
            continue
        finished = executor.running.pop(data.draw(st.integers(0, len(executor.running) - 1)))
        if data.draw(st.integers(0, 4)) == 0:
            queue.add(finished)  # it is tried again
        else:
            end(Outcome(finished, "done" if data.draw(st.booleans()) else "failed"))
    assert sorted(ended) == sorted(one.key for one in jobs)


@given(plans())
def test_no_job_starts_before_what_it_needs_is_done(jobs: list[Job]) -> None:
    queue, executor, done = JobQueue(jobs), RoomFor(1), set[str]()
    while queue or executor.running:
        for startable in queue.pop_startable(executor):
            assert done.issuperset(startable.teachers), f"{startable.label} started too early"
            executor.submit(startable)
        assert executor.running, "jobs wait, and nothing will ever release them"
        finished = executor.running.pop()
        done.update(finished.signatures)
        queue.mark_finished(Outcome(finished))
