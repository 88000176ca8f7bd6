"""Supervision by a fake executor: order, needs, budgets, and how often it looks at what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from orchestrator.config.settings import Retries
from orchestrator.execution.executor import Event
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.execution.scheduler import Scheduler
from tests.factories import job
from workers.config.job import Job


class Fake:
    """Two slots; every job ends at the next poll, as `ends` says."""

    def __init__(self, ends: dict[str, list[tuple[str, str | None]]] | None = None, largest: float = 1) -> None:
        self.ends, self.largest = ends or {}, largest
        self.running: list[Job] = []
        self.started: list[str] = []
        self.asked = 0

    def why_unschedulable(self, job: Job) -> str | None:
        self.asked += 1
        return "too large" if job.recipe.resources.cpus > self.largest else None

    def prepare(self, *_: Any) -> None: ...

    def has_capacity(self, job: Job) -> bool:
        self.asked += 1
        return len(self.running) < 2

    def submit(self, job: Job, uri: str | None, runs: tuple[str, ...]) -> None:
        assert self.has_capacity(job)
        self.running.append(job)
        self.started.append(job.key)

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        done, self.running = self.running, []
        for one in done:
            kind, cause = self.ends.get(one.key, [("done", None)])[0]
            if len(self.ends.get(one.key, ())) > 1:
                self.ends[one.key].pop(0)
            yield Outcome(one, kind, "because", cause)  # type: ignore[arg-type]

    def withdraw(self) -> list[Job]:
        return []

    def stop(self, seconds: float) -> None: ...

    def prepare_on_head(self, modules: Sequence[str]) -> None: ...

    def call_on_head(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    def recover(self) -> bool:
        return False

    def close(self) -> None: ...


def run(jobs: list[Job], fake: Fake, closed: Callable[[], str | None] = lambda: None, **retries: Any) -> dict[str, Outcome]:
    return Scheduler(fake, Retries(**retries), lambda event: None, why_closed=closed).run(jobs)


def test_jobs_start_in_the_order_of_the_plan_and_what_needs_another_after_it() -> None:
    fake = Fake()
    jobs = [job("s", teachers=("a", "c")), job("a"), job("b", teachers=("a",)), job("c"), job("d")]
    ended = run(jobs, fake)
    assert {o.kind for o in ended.values()} == {"done"}
    assert fake.started[:3] == ["a", "c", "d"]
    assert set(fake.started[3:]) == {"b", "s"}


def test_what_needs_a_fit_that_failed_never_starts_and_says_so() -> None:
    fake = Fake({"a": [("diverged", None)]})
    jobs = [job("a"), job("a.2", teachers=("a",)), job("a.3", teachers=("a.2",)), job("b"), job("s", teachers=("a", "b", "a.3"))]
    ended = run(jobs, fake)
    assert fake.started == ["a", "b"]
    assert ended["a.2"].reason == "a, from which it learns, did not succeed (diverged)"
    assert ended["a.3"].reason == "a.2, from which it learns, did not succeed (failed)"
    assert "from which it learns" in ended["s"].reason
    assert len(ended) == 5


def test_the_fusion_step_is_prepared_once_nothing_waits_any_more() -> None:
    fake, started = Fake({"c": [("failed", "errors"), ("done", None)]}), list[int]()
    scheduler = Scheduler(fake, Retries(errors=1), lambda event: None, when_all_run=lambda: started.append(len(fake.started)))
    scheduler.run([job("a"), job("b"), job("c")])
    assert started == [3, 4], "with the last job, and where it is tried again"


def test_what_is_done_already_need_not_be_waited_for() -> None:
    assert run([job("b", teachers=("done long ago",))], Fake())["b"].kind == "done"


@pytest.mark.parametrize(("errors", "expected"), [(1, "failed"), (2, "done")])
def test_a_budget_allows_so_many_tries_more(errors: int, expected: str) -> None:
    fake = Fake({"a": [("failed", "errors"), ("failed", "errors"), ("done", None)]})
    ended = run([job("a"), job("b", teachers=("a",))], fake, errors=errors)
    assert (ended["a"].kind, ended["b"].kind) == (expected, expected)
    assert fake.started.count("a") == errors + 1
    if expected == "failed":
        assert ended["a"].reason == "because (2 times)"


def test_what_no_machine_holds_is_told_and_the_rest_go_on() -> None:
    ended = run([job("huge", cpus=8), job("a"), job("after", teachers=("huge",))], Fake())
    assert (ended["huge"].kind, ended["huge"].reason) == ("unschedulable", "too large")
    assert ended["after"].kind == "failed"
    assert ended["a"].kind == "done"


def test_supervision_costs_as_much_a_job_in_a_large_plan_as_in_a_small_one() -> None:
    asked = []
    for count in (100, 2000):
        fake = Fake()
        ended = run([job(f"j{i}", teachers=(f"j{i - 1}",) if i % 3 == 0 and i else ()) for i in range(count)], fake)
        assert len(ended) == count
        asked.append(fake.asked / count)
    assert asked[1] < asked[0] * 1.1


def test_what_is_closed_starts_nothing_more_and_lets_what_runs_end() -> None:
    fake = Fake()
    jobs = [job("a"), job("b"), job("c"), job("b.2", teachers=("b",)), job("s", teachers=("a", "c"))]
    ended = run(jobs, fake, lambda: "used up" if fake.started else None)
    assert fake.started == ["a", "b"]
    skipped = {name for name, one in ended.items() if one.kind == "skipped"}
    assert skipped == {"c", "b.2", "s"}
    assert {ended[name].reason for name in skipped} == {"used up"}
    assert {ended[name].kind for name in ("a", "b")} == {"done"}


def test_a_retry_after_the_budget_is_used_up_is_skipped() -> None:
    fake = Fake({"a": [("failed", "errors"), ("done", None)]})
    ended = run([job("a")], fake, lambda: "used up" if fake.started else None)
    assert (ended["a"].kind, ended["a"].reason) == ("skipped", "used up")
    assert fake.started == ["a"]


class Waiting(Fake):
    """An executor like an autoscaler's: it takes every job, and two of them run."""

    def has_capacity(self, job: Job) -> bool:
        return True

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        done, self.running = self.running[:2], self.running[2:]
        yield from (Outcome(one) for one in done)

    def withdraw(self) -> list[Job]:
        waiting, self.running = self.running[2:], self.running[:2]
        return waiting


def test_jobs_that_wait_for_a_machine_are_withdrawn_once_the_budget_is_used_up() -> None:
    """Twenty jobs wait, and the budget is gone after the first two: eighteen more would have been trained."""
    executor, jobs = Waiting({}), [job(f"m{i}") for i in range(20)]
    outcomes: dict[str, Outcome] = {}
    scheduler = Scheduler(executor, Retries(), lambda event: None, why_closed=lambda: "spent" if outcomes else None)
    scheduler.outcomes = outcomes
    scheduler.run(jobs)
    kinds = [one.kind for one in outcomes.values()]
    assert (kinds.count("done"), kinds.count("skipped")) == (4, 16), "two are done, two run already"
    assert {one.reason for one in outcomes.values() if one.kind == "skipped"} == {"spent"}
