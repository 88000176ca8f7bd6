"""How many trainings share a GPU: what is chosen by what was seen, and the trial itself, which runs on a CPU as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.planning.plan import Planner
from tests.factories import TEAM, snapshot, team_of
from workers.config.job import Job
from workers.config.resources import Resources
from workers.data.packing import pack_data
from workers.runtime.gpu_probe import Round, choose, probe_gpu

FULL = 0.95


@pytest.mark.parametrize(
    ("rates", "memory", "most", "trainings", "why"),
    [
        ([100], [0.1], 1, 1, "1: 100"),
        ([100, 190, 260], [0.1, 0.2, 0.3], 3, 3, "3: 260"),
        ([100, 190, 200], [0.1, 0.2, 0.3], 8, 2, "3 at once gave less than 10% more"),
        ([100, 105], [0.1, 0.2], 8, 1, "2 at once gave less than 10% more"),
        ([100, 190, 280], [0.3, 0.6, FULL], 8, 2, "3 would take 95% of the memory"),
        ([100, 190], [0.1, 0.2], 8, 2, "3 at once did not run"),
        ([], [], 8, 1, "not even one"),
    ],
)
def test_as_many_share_a_gpu_as_pays_and_its_memory_holds(
    rates: list[float], memory: list[float], most: int, trainings: int, why: str
) -> None:
    rounds = [Round(count + 1, *seen) for count, seen in enumerate(zip(rates, memory, strict=True))]
    chosen = choose(rounds, most)
    assert chosen.trainings == trainings
    assert why in chosen.sentence
    assert chosen.sentence.startswith(f"{trainings} trainings share" if trainings > 1 else "each training has a GPU")


@pytest.fixture
def one(tmp_path: Path) -> Job:
    team = team_of(TEAM)
    return Planner(team, pack_data(team.data, tmp_path), tmp_path).plan().jobs[0]


def test_the_trial_trains_in_processes_of_their_own_and_writes_nothing(one: Job, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    chosen = probe_gpu(one, 2)
    assert 1 <= chosen.trainings <= 2
    assert "images a second by the number of trainings: 1: " in chosen.reason
    assert ", 2: " in chosen.reason, "both were seen"
    assert snapshot(tmp_path) == before


def test_a_training_that_does_not_run_is_no_error_of_the_trial(one: Job, tmp_path: Path) -> None:
    chosen = probe_gpu(one.model_copy(update={"store": tmp_path / "nowhere"}), 2)
    assert (chosen.trainings, chosen.reason) == (1, "not even one training could be tried")


def test_auto_is_what_is_left_open() -> None:
    assert Resources.model_validate({"gpus": "auto"}) == Resources()
