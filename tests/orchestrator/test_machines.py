"""Which job may wait for which machine, by a connection that says what a Ray would."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.cluster import machines
from orchestrator.cluster.connection import ClusterSnapshot
from orchestrator.cluster.machines import EXPECTS_GPUS, Machines, Size
from tests.factories import job
from workers.config.job import Job
from workers.config.resources import Resources


class Ray:
    def __init__(self, nodes: dict[str, dict[str, float]], refused: list[dict[str, float]] | None = None) -> None:
        self.now, self.refused_, self.drained, self.busy = nodes, refused, set[str](), False
        self.labels: dict[str, dict[str, str]] = {}

    def snapshot(self) -> ClusterSnapshot | None:
        nodes = {name: {"Resources": has, "Labels": self.labels.get(name, {})} for name, has in self.now.items()}
        return None if self.busy else ClusterSnapshot(nodes, self.drained, self.refused_)


def of(ray: Ray) -> Machines:
    return Machines(ray)  # type: ignore[arg-type]


def asks(gpus: float | None, wait: float | None = None, labels: object = ()) -> Job:
    one = job("a")
    resources = Resources.model_validate({"gpus": gpus, "wait_minutes": wait, "labels": labels})
    return one.model_copy(update={"recipe": one.recipe.model_copy(update={"resources": resources})})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("refused", "wait", "expected"),
    [
        (None, None, 900.0),
        (None, 2, 1020.0),
        ([], None, math.inf),
        ([], 2, 1020.0),
        ([{"GPU": 8.0, "CPU": 1.0}], None, 1000 + machines.REFUSED_SECONDS),
        ([{"GPU": 4.0, "CPU": 1.0}], None, math.inf),
    ],
)
def test_a_job_waits_as_long_as_a_machine_may_come(refused: Any, wait: float | None, expected: float, clock: list[float]) -> None:
    """Of eight GPUs where there are none: without an autoscaler, with one, and with one that brings nothing so large."""
    made = of(Ray({"head": {"CPU": 2.0}}, refused))
    assert not made.fit(asks(8, wait))
    assert made.wait_deadline(asks(8, wait), 900.0) == expected
    assert ("the autoscaler brings none" in made.why_impossible(asks(8, wait))) == (refused is not None and wait is None)


def test_a_limit_that_is_reached_for_a_while_is_no_refusal(clock: list[float]) -> None:
    """The autoscaler lists the same demand while all its machines are taken: only one that lasts counts."""
    ray = Ray({"head": {"CPU": 0.0}}, [{"GPU": 1.0, "CPU": 1.0}])
    made = of(ray)
    assert made.wait_deadline(asks(1), 0.0) == 1000 + machines.REFUSED_SECONDS
    clock[0] += 300
    assert made.wait_deadline(asks(1), 0.0) == 1000 + machines.REFUSED_SECONDS, "by the first time that it was seen"
    ray.refused_ = []
    clock[0] += 2
    assert made.wait_deadline(asks(1), 0.0) == math.inf
    ray.refused_ = [{"GPU": 1.0, "CPU": 1.0}]
    clock[0] += 2
    assert made.wait_deadline(asks(1), 0.0) == clock[0] + machines.REFUSED_SECONDS


def test_a_gpu_is_asked_for_where_there_are_some_or_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(Ray({"n": {"CPU": 2.0}})).size_for(asks(None).recipe.resources) == Size(0, 1)
    assert of(Ray({"n": {"CPU": 2.0, "GPU": 1.0}})).size_for(asks(None).recipe.resources) == Size(1, 1)
    monkeypatch.setenv(EXPECTS_GPUS, "1")
    assert of(Ray({"n": {"CPU": 2.0}})).size_for(asks(None).recipe.resources) == Size(1, 1)
    assert of(Ray({"n": {"CPU": 2.0}})).size_for(asks(0).recipe.resources) == Size(0, 1)


def test_a_machine_that_is_told_to_go_takes_no_work_and_another_may_come_for_a_while(clock: list[float]) -> None:
    ray = Ray({"a": {"CPU": 1.0}, "b": {"CPU": 2.0}})
    made = of(ray)
    assert (made.look().total(), made.wait_deadline(asks(0), 900.0)) == (Size(0, 3), 900.0)
    ray.drained.add("b")
    clock[0] += 2
    assert (made.look().total(), made.leaving, made.alive) == (Size(0, 1), {"b"}, {"a", "b"})
    assert made.wait_deadline(asks(0), 900.0) == clock[0] + machines.REPLACED_SECONDS, "however long it has waited by then"


def test_where_ray_is_too_busy_to_say_what_was_known_stays(clock: list[float]) -> None:
    ray = Ray({"a": {"CPU": 1.0}})
    made = of(ray)
    assert made.look().total() == Size(0, 1)
    clock[0] += 2
    ray.busy = True
    assert made.look().total() == Size(0, 1)
    assert made.wait_deadline(asks(0), 900.0) == 900.0, "nothing went away"


SPOT_FIRST = ({"market": "spot"}, {"market": "on-demand", "accelerator": "T4"})


def test_a_job_that_wants_labels_fits_on_machines_with_one_of_them_alone(clock: list[float]) -> None:
    ray = Ray({"own": {"CPU": 8.0}, "cloud": {"CPU": 2.0}})
    ray.labels = {"cloud": {"market": "on-demand", "accelerator": "A10G"}}
    made = of(ray)
    assert made.fit(asks(0))
    assert not made.fit(asks(0, labels=SPOT_FIRST)), "all labels of a wish have to be there"
    told = made.why_impossible(asks(0, labels=SPOT_FIRST))
    assert "with the labels {market: spot or accelerator: T4, market: on-demand}" in told
    assert made.total(asks(0, labels=SPOT_FIRST).recipe.resources) == Size(0, 0)
    ray.labels = {"cloud": {"market": "on-demand", "accelerator": "T4"}}
    clock[0] += 2
    assert made.fit(asks(0, labels=SPOT_FIRST))
    assert made.total(asks(0, labels=SPOT_FIRST).recipe.resources) == Size(0, 2)


def test_thirds_of_a_gpu_fill_it() -> None:
    assert Size(1, 3).holds(Size.sum([Size(1 / 3, 1)] * 3))
