"""Trainings that share a GPU: which kinds are tried, what each is given, and what comes of too little memory."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.cluster.gpu_sharing import kind_of
from orchestrator.cluster.machines import Machine, Machines, Size
from orchestrator.config.settings import Retries
from orchestrator.execution.outcomes import Outcome
from orchestrator.execution.sharing_trials import MOST, alternatives
from orchestrator.execution.supervisor import Supervisor
from orchestrator.execution.trainer_handle import Assignment, TrainerHandle
from orchestrator.execution.trainer_pool import TrainerPool
from tests.factories import job
from workers.errors import GpuCrowdedError
from workers.runtime.gpu_probe import Sharing
from workers.runtime.job_result import Failure, JobResult


def machines(*sizes: Size, connection: Any = None) -> Machines:
    return Machines(connection, available=[Machine(size, {}) for size in sizes], looked_at=time.monotonic() + 600)


def test_a_kind_is_tried_where_more_wait_than_there_are_gpus_and_cores_are_there() -> None:
    three = [job("a"), job("b"), job("c")]
    assert [(alike.job.label, alike.most) for alike in alternatives(machines(Size(1, 16)), three)] == [("a", 3)]
    assert [alike.most for alike in alternatives(machines(Size(1, 2)), three)] == [2]
    assert [alike.most for alike in alternatives(machines(Size(2, 16)), three)] == [2]
    assert [alike.most for alike in alternatives(machines(Size(1, 64)), [job(f"m{i}") for i in range(99)])] == [MOST]
    for one in (machines(Size(4, 16)), machines(Size(0, 16)), machines(Size(1, 1)), machines()):
        assert list(alternatives(one, three)) == []


def test_other_networks_are_tried_apart_and_what_is_known_or_set_is_not_tried() -> None:
    there = machines(Size(1, 16))
    jobs = [job("a"), job("b"), job("wide", width=128), job("wider", width=128)]
    assert [alike.job.label for alike in alternatives(there, jobs)] == ["a", "wide"]
    there.sharing.known[kind_of(jobs[0])] = Sharing(2, "seen")
    assert [alike.job.label for alike in alternatives(there, jobs)] == ["wide"]
    fixed = [job(name, resources={"cpus": 1.0, "gpus": 0.5}) for name in "fg"]
    assert list(alternatives(machines(Size(1, 16)), fixed)) == []
    assert list(alternatives(machines(Size(1, 16)), [job("s", ("a",)), job("t", ("a",))])) == []


@pytest.mark.parametrize("trainings", [1, 2, 3, 7, 8])
def test_all_that_share_a_gpu_fit_on_it_and_one_more_does_not(trainings: int) -> None:
    there = machines(Size(1, 16))
    there.sharing.known[kind_of(job("a"))] = Sharing(trainings, "seen")
    gpus = there.shape(job("a")).gpus
    assert Size.sum([Size(gpus, 1)] * trainings).gpus <= 1 < Size.sum([Size(gpus, 1)] * (trainings + 1)).gpus
    assert there.shape(job("f", resources={"cpus": 1.0, "gpus": 0.5})).gpus == 0.5


def test_where_the_memory_was_too_small_fewer_share_and_the_training_is_tried_again() -> None:
    answer = JobResult(Failure.of(GpuCrowdedError("out of memory")))
    connection = SimpleNamespace(
        ray=SimpleNamespace(get=lambda _: answer, exceptions=SimpleNamespace(OutOfMemoryError=OSError, RayError=OSError)),
        is_ready=lambda _: True,
    )
    there = machines(Size(1, 16), connection=connection)
    there.sharing.known[kind_of(job("a"))] = Sharing(3, "seen")
    supervisor = Supervisor(TrainerPool(cast(Any, connection), there))
    three = there.shape(job("a"))
    for shape, left in ((three, 2), (three, 2), (None, 1), (None, 1)):  # two of the three may run out at once
        assignment = Assignment(job("a"), (None, ()), "its result", pending_heartbeat="none")
        trainer = TrainerHandle(None, shape or there.shape(job("a")), assignment=assignment)
        outcome = supervisor._outcome(trainer, assignment)
        assert isinstance(outcome, Outcome)
        assert (outcome.kind, outcome.cause, trainer.is_idle) == ("failed", "crowded", True)
        assert there.sharing.of(job("a")).trainings == left
    assert Retries(errors=0).allows("crowded", 100)
