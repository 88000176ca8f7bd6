"""What the executor on Ray tells of a job that has not begun, by a trainer that never gives a sign of life."""

from __future__ import annotations

import time
from typing import Any

import pytest

from orchestrator.cluster import TOLD_SECONDS, RayExecutor, _Trainer
from orchestrator.launch import Event
from orchestrator.machines import Shape
from tests.orchestrator.test_launch import job


@pytest.mark.parametrize(("waited", "told"), [(0.0, 0), (TOLD_SECONDS + 1, 1)])
def test_a_job_that_waits_for_a_machine_says_so_once(waited: float, told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    executor: Any = object.__new__(RayExecutor)
    monkeypatch.setattr(executor, "_ready", lambda reference: False, raising=False)
    trainer = _Trainer(None, Shape(1, 2, 1, (), 1), job("a"), asked="its sign of life", submitted=time.monotonic() - waited)
    notes = [event for _ in range(3) for event in executor._progress(trainer)]
    assert len(notes) == told
    for event in notes:
        assert isinstance(event, Event)
        assert event.text == "waits for a machine with room for 1 GPUs and 2 CPUs"
