"""What the executor on Ray tells of a job that has not begun, by a trainer that never gives a sign of life."""

from __future__ import annotations

import time
from typing import Any

import pytest

from orchestrator.cluster.machines import Shape
from orchestrator.execution.executor import Event
from orchestrator.execution.ray_executor import RayExecutor
from orchestrator.execution.trainer_handle import WAITING_NOTE_SECONDS, Assignment, TrainerHandle
from tests.factories import job


@pytest.mark.parametrize(("waited", "told"), [(0.0, 0), (WAITING_NOTE_SECONDS + 1, 1)])
def test_a_job_that_waits_for_a_machine_says_so_once(waited: float, told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    executor: Any = object.__new__(RayExecutor)
    monkeypatch.setattr(executor, "_is_ready", lambda reference: False, raising=False)
    began = time.monotonic() - waited
    assignment = Assignment(job("a"), (None, ()), "its result", began, pending_heartbeat="its sign of life")
    trainer = TrainerHandle(None, Shape(1, 2, 1, (), 1), assignment=assignment)
    notes = [event for _ in range(3) for event in executor._progress(trainer, assignment)]
    assert len(notes) == told
    for event in notes:
        assert isinstance(event, Event)
        assert event.text == "waits for a machine with room for 1 GPUs and 2 CPUs"
