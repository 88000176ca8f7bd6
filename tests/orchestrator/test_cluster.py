"""What the executor on Ray tells of a job that has not begun, by a trainer that never gives a sign of life."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.cluster.connection import ClusterSnapshot
from orchestrator.cluster.machines import Machine, Machines, Shape, Size
from orchestrator.config.settings import HeartbeatSpec
from orchestrator.execution import trainer_pool
from orchestrator.execution.executor import Event
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.execution.supervisor import Supervisor
from orchestrator.execution.trainer_handle import WAITING_NOTE_SECONDS, Assignment, TrainerHandle
from orchestrator.execution.trainer_pool import TrainerPool, begin_trainers
from tests.factories import job
from workers.config.resources import Resources
from workers.runtime import actor
from workers.runtime.heartbeat import Heartbeat


@pytest.mark.parametrize(("waited", "told"), [(0.0, 0), (WAITING_NOTE_SECONDS + 1, 1)])
def test_a_job_that_waits_for_a_machine_says_so_once(waited: float, told: int) -> None:
    connection: Any = SimpleNamespace(ray=None, is_ready=lambda reference: False)
    supervisor = Supervisor(TrainerPool(connection, cast(Any, None), actor.JobLocalizer()))
    began = time.monotonic() - waited
    assignment = Assignment(job("a"), (None, ()), "its result", began, pending_heartbeat="its sign of life")
    trainer = TrainerHandle(None, Shape(1, 2, 1, (), 1), assignment=assignment)
    notes = [event for _ in range(3) for event in supervisor._progress(trainer, assignment)]
    assert len(notes) == told
    for event in notes:
        assert isinstance(event, Event)
        assert event.text == "waits for a machine with room for 1 GPUs and 2 CPUs"


def test_a_job_that_ends_before_its_first_heartbeat_has_worked_nonetheless() -> None:
    connection: Any = SimpleNamespace(ray=None)
    supervisor = Supervisor(TrainerPool(connection, cast(Any, None), actor.JobLocalizer()))
    assignment = Assignment(job("a"), (None, ()), "its result")
    events = supervisor._last_events(assignment, Outcome(assignment.job, "done"))
    assert [(event.kind, event.text) for event in events] == [("working", ""), ("published", "a")]
    assignment.take_heartbeat(Heartbeat(1, "node", 0, {}, [], 0))
    assert [event.kind for event in supervisor._last_events(assignment, Outcome(assignment.job, "done"))] == ["published"]


def test_a_ray_without_any_machine_is_not_taken_for_one_whose_machines_are_too_small() -> None:
    """The raylet of a local Ray may end before it was asked once. The next look at Ray itself tells that."""
    snapshots = iter(
        [ClusterSnapshot({}, set(), None), ClusterSnapshot({"id": {"Resources": {"CPU": 2.0}, "Labels": {}}}, set(), None)]
    )
    connection: Any = SimpleNamespace(snapshot=lambda: next(snapshots))
    machines, now = Machines(connection), time.monotonic()
    assert not machines.fit(job("a"))
    assert machines.wait_deadline(job("a"), now) > now + 50
    assert "there is no machine that takes work" in machines.why_impossible(job("a"))
    machines.looked_at -= 2
    assert machines.fit(job("a"))


@pytest.mark.parametrize(("age", "is_hung"), [(0.0, False), (9.0, False), (11.0, True)])
def test_a_sign_of_life_that_others_hand_on_counts_from_when_it_was_given(age: float, is_hung: bool) -> None:
    """The trainer of several processes answers for the first of them, and goes on to when that one is gone."""
    assignment = Assignment(job("a"), (None, ()), "its result")
    assignment.take_heartbeat(Heartbeat(1, "node", 0, {}, [], 0, age=age))
    assert (assignment.why_hung(HeartbeatSpec(seconds=10)) is not None) == is_hung


@pytest.mark.parametrize(("wanted", "begun"), [([1, 1, 1], 2), ([1, 2, 1], 1), ([3, 1], 0), ([], 0), ([1, "label"], 1)])
def test_as_many_trainers_begin_early_as_the_machines_hold_at_once(
    wanted: list[int | str], begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_pool, "begin_trainer", lambda shape: TrainerHandle(None, shape))
    machines = Machines(cast(Any, None), available=[Machine(Size(0, 2), {})], looked_at=time.monotonic() + 60)
    labelled = Resources.model_validate({"labels": {"k": "v"}})
    asked = [(Resources(cpus=cpus) if isinstance(cpus, int) else labelled, 1) for cpus in wanted]
    assert [trainer.shape.cpus for trainer in begin_trainers(machines, asked)] == wanted[:begun]


def test_a_group_that_starts_is_never_taken_for_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take longer to start than a trainer may be silent. So no sign of life counts before the first process's own."""
    monkeypatch.setattr(actor, "import_all", lambda modules: None)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    leader, alone = (cast(Any, actor.TrainerActor).__ray_metadata__.modified_class(leads) for leads in (True, False))
    assert leader.heartbeat().is_waiting, "before it knows of its job, too"
    assert not alone.heartbeat().is_waiting
    leader.report(Heartbeat(1, "node", 2, {}, [], 7))
    assert (leader.heartbeat().is_waiting, leader.heartbeat().steps) == (False, 7)


def test_a_process_that_is_none_of_rays_is_not_ended_in_the_place_of_one_that_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        cast(Any, actor.end_process)._function(other.pid)
        time.sleep(0.2)
        assert other.poll() is None
        other.kill()
