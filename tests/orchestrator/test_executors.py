"""The contract of executors, which each implementation passes, and the one function that says what a failure means."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from orchestrator.cluster.connection import Connection
from orchestrator.cluster.machines import Size
from orchestrator.execution.executor import Event, Executor
from orchestrator.execution.inline_executor import InlineExecutor
from orchestrator.execution.job_outcomes import Cause, Outcome, outcome_of_death, outcome_of_result
from orchestrator.execution.ray_executor import RayExecutor
from orchestrator.planning.plan import Planner
from tests.factories import TEAM, job, team_of
from workers.config.job import Job
from workers.data.packing import pack_data
from workers.data.splits import keep_split
from workers.errors import ConclaveError, DivergedError, EnvironmentMismatchError, FailureKind, TrainingStopped, last_line
from workers.runtime.job_result import Failure, JobResult
from workers.storage.training_folder import TrainingFolder


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    """A local Ray. A process can have one in its life, because Ray keeps the token of the first."""
    before = dict(os.environ)
    made = Connection(None)
    yield made
    made.close()
    os.environ.clear()
    os.environ.update(before)


def ray_executor(connection: Connection) -> RayExecutor:
    from workers.runtime.actor import JobLocalizer  # imports Ray, which reads its token's settings then

    return RayExecutor(connection, JobLocalizer())


@pytest.fixture(params=["inline", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = InlineExecutor() if request.param == "inline" else ray_executor(request.getfixturevalue("connection"))
    yield made
    made.close()


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Two trainings: of one member, and of two."""
    text = TEAM.replace("folds: 2", "folds: 0").replace("seed: 5}", "seed: 5, snapshots: 2}")
    team = team_of(text)
    store = pack_data(team.data, tmp_path)
    keep_split(store, team.data, team.seed, tmp_path)
    return list(Planner(team, store, tmp_path).plan().jobs)


def run(executor: Executor, one: Job) -> tuple[list[Event], Outcome]:
    """Run one job to its end. Nothing of another job is told."""
    assert executor.why_unschedulable(one) is None
    assert executor.has_capacity(one)
    executor.submit(one, None, ())
    events: list[Event] = []
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for item in executor.poll(0.5):
            assert item.job == one
            if isinstance(item, Outcome):
                return events, item
            events.append(item)
    raise AssertionError("no outcome came")


@pytest.mark.slow
def test_a_local_ray_has_no_process_that_nobody_asks(connection: Connection) -> None:
    """No dashboard, no autoscaler and no forwarder of logs: they made it start in four seconds instead of two or three."""
    of_ray = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert [sum(name in words for words in of_ray) for name in ("gcs_server", "raylet/raylet ")] == [1, 1]
    assert [words for words in of_ray for name in ("dashboard/dashboard.py", "monitor.py") if name in words] == []


def test_a_job_ends_in_one_outcome_after_its_events(executor: Executor, jobs: list[Job]) -> None:
    for one, names in zip(jobs, (["a"], ["b.1", "b.2"]), strict=True):
        events, outcome = run(executor, one)
        assert outcome.kind == "done"
        assert TrainingFolder.of(one).done
        first = next(event.kind for event in events if event.kind != "note")  # a busy machine may note that the job waits
        assert first == "working"
        assert [event.text for event in events if event.kind == "published"] == names
        assert list(executor.poll(0.1)) == [], "one outcome, and nothing after it"


def test_a_job_that_fails_is_an_outcome_with_a_trace_and_may_be_submitted_again(
    executor: Executor, jobs: list[Job], tmp_path: Path
) -> None:
    bad = jobs[0].model_copy(update={"store": tmp_path / "nowhere"})
    for _ in range(2):
        _, outcome = run(executor, bad)
        assert (outcome.kind, outcome.cause) == ("failed", "errors")
        assert outcome.reason.startswith("FileNotFoundError: ")
        assert "\n" not in outcome.reason
        assert "Traceback" in outcome.trace
    assert run(executor, jobs[0])[1].kind == "done", "it stays of use"


def test_a_function_is_called_on_the_head_and_raises_what_it_raises(executor: Executor) -> None:
    assert executor.call_on_head(os.path.join, "a", "b") == os.path.join("a", "b")
    with pytest.raises(ZeroDivisionError):
        executor.call_on_head(divmod, 1, 0)


@pytest.mark.slow
def test_the_fusion_actor_begins_early_where_a_core_is_free(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports for ten seconds, which would hold up the last trainings."""
    made = ray_executor(connection)
    cores = made.machines.total().cpus
    for cpus, begins in ((cores, False), (cores - 0.5, True)):
        size = Size(0, cpus)
        monkeypatch.setattr(made.pool, "busy", lambda size=size: [(SimpleNamespace(shape=SimpleNamespace(size=size)), None)])
        made.prepare_on_head(["colorsys"])
        assert (made.fusion_actor is not None) == begins
    monkeypatch.undo()
    assert made.call_on_head(eval, "'colorsys' in __import__('sys').modules"), "in the actor, which has imported it"
    made.close()


def test_a_stopped_executor_can_be_closed_twice(executor: Executor, jobs: list[Job]) -> None:
    executor.submit(jobs[0], None, ())
    executor.stop(5)
    executor.close()
    executor.close()


RESULTS: dict[str, tuple[Failure, bool, tuple[str, str | None]]] = {
    "an exception of a user's network": (Failure.of(ValueError("x")), False, ("failed", None)),
    "an exception that may not come again": (Failure.of(OSError("x")), False, ("failed", "errors")),
    "a loss that is no number": (Failure.of(DivergedError("x")), False, ("diverged", None)),
    "a damaged file": (Failure.of(ConclaveError("x")), False, ("failed", None)),
    "another environment": (Failure.of(EnvironmentMismatchError("x")), False, ("failed", None)),
    "a lost machine": (Failure(FailureKind.PREEMPTED, "x"), False, ("failed", "preemptions")),
    "a stop because the machine goes": (Failure.of(TrainingStopped("x")), True, ("failed", "preemptions")),
    "a stop that somebody asked for": (Failure.of(TrainingStopped("x")), False, ("failed", None)),
}


@pytest.mark.parametrize(("failure", "is_leaving", "expected"), RESULTS.values(), ids=RESULTS.keys())
def test_what_a_failure_means(failure: Failure, is_leaving: bool, expected: tuple[str, str | None]) -> None:
    outcome = outcome_of_result(job("a"), JobResult(failure), is_leaving)
    assert (outcome.kind, outcome.cause) == expected
    assert outcome.reason


def test_no_kind_of_failure_is_forgotten() -> None:
    assert {failure.kind for failure, *_ in RESULTS.values()} == set(FailureKind)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("errors", "the trainer died: why"),
        ("preemptions", "its machine went away"),
        ("oom", "out of memory, why: lower"),
    ],
)
def test_what_a_death_means(cause: Cause, words: str) -> None:
    outcome = outcome_of_death(job("a"), cause, "why")
    assert (outcome.kind, outcome.cause) == ("failed", cause)
    assert words in outcome.reason


def test_of_a_traceback_the_last_line_is_told() -> None:
    """Ray colours its words, and ends some lines with marks below the code."""
    said = (
        "The actor died because of an error raised in its creation task, \x1b[36mray::TrainerActor.__init__()\x1b[39m\n"
        '  File "x.py", line 1, in <module>\n    import lost\n    ^^^^^^\n'
        "ModuleNotFoundError: No module named 'lost'\n   ^^^\n"
    )
    assert last_line(RuntimeError(said)) == "ModuleNotFoundError: No module named 'lost'"
    assert last_line(RuntimeError("")) == ""
