"""What the executor on Ray tells of a job that has not begun, by a trainer that never gives a sign of life."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.cluster.machines import Shape
from orchestrator.execution.executor import Event
from orchestrator.execution.supervisor import Supervisor
from orchestrator.execution.trainer_handle import WAITING_NOTE_SECONDS, Assignment, TrainerHandle
from orchestrator.execution.trainer_pool import TrainerPool
from tests.factories import job


@pytest.mark.parametrize(("waited", "told"), [(0.0, 0), (WAITING_NOTE_SECONDS + 1, 1)])
def test_a_job_that_waits_for_a_machine_says_so_once(waited: float, told: int) -> None:
    connection: Any = SimpleNamespace(ray=None, is_ready=lambda reference: False)
    supervisor = Supervisor(TrainerPool(connection, cast(Any, None)))
    began = time.monotonic() - waited
    assignment = Assignment(job("a"), (None, ()), "its result", began, pending_heartbeat="its sign of life")
    trainer = TrainerHandle(None, Shape(1, 2, 1, (), 1), assignment=assignment)
    notes = [event for _ in range(3) for event in supervisor._progress(trainer, assignment)]
    assert len(notes) == told
    for event in notes:
        assert isinstance(event, Event)
        assert event.text == "waits for a machine with room for 1 GPUs and 2 CPUs"
