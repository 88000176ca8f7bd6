"""What a plan is said to take on a cluster: which machines, how long, for how much."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.config import loader as config
from orchestrator.config import yaml_document as teamfile
from orchestrator.config.team import Team
from orchestrator.planning import estimate
from orchestrator.planning.disk import describe_disk
from orchestrator.planning.estimate import BOOT_HOURS, GPU_FLOPS
from orchestrator.planning.plan import Planner
from tests.factories import FakeStore
from workers.errors import UserInputError

TEAM = "name: t\ndata: {dataset: cifar10, folds: 0}\ntrain: {epochs: 100}\nmembers: [{name: a, count: 3}]\n"
TYPES: dict[str, dict[str, Any]] = {
    "head": {"resources": {"CPU": 0}},
    "spot": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2, "labels": {"market": "cheap"}},
    "dear": {"resources": {"CPU": 8, "GPU": 2}, "max_workers": 1},
}
CLUSTER = {"cluster_name": "c", "max_workers": 3, "idle_timeout_minutes": 6, "head_node_type": "head"}
HOURS = 40_000 * 0.9 * 100 * 6 * 0.56e9 / GPU_FLOPS / 3600  # of one full fit: rows, epochs, operations an image


class Store(FakeStore):
    tested = np.arange(50_000) >= 40_000
    size = 32


def team_of(text: str) -> Team:
    return config.resolve_team(teamfile.parse_document(text, Path("/somewhere/team.yaml")))


def on(text: str, tmp_path: Path, **cluster: Any) -> estimate.Estimate:
    made = Planner(team_of(text), Store(tmp_path / "store"), tmp_path).plan()
    return estimate.estimate_cluster(made, {**CLUSTER, "available_node_types": TYPES, **cluster})


def test_the_cheap_machines_come_first_and_all_are_paid_until_they_go(tmp_path: Path) -> None:
    found = on(TEAM + "prices: {cheap: 0.2, dear: 3}\n", tmp_path)
    assert {name: count for name, (count, _) in found.machines.items()} == {"spot": 2, "dear": 1}
    assert found.hours == pytest.approx(BOOT_HOURS + HOURS)
    each = BOOT_HOURS + HOURS + 0.1
    assert found.machines["spot"][1] == pytest.approx(2 * each)
    assert found.money == pytest.approx(2 * each * 0.2 + each * 2 * 3), "the dear one holds two trainers"
    assert found.basis == estimate.ROUGH
    with_head = on(TEAM + "prices: {cheap: 0.2, dear: 3}\nbudget: {head: 0.5}\n", tmp_path)
    assert with_head.money == pytest.approx(found.money + 0.5 * found.hours)


def test_where_no_more_machines_may_come_jobs_wait_for_the_first_that_is_free(tmp_path: Path) -> None:
    found = on(TEAM, tmp_path, max_workers=2)
    assert {name: count for name, (count, _) in found.machines.items()} == {"spot": 2, "dear": 0}
    assert found.hours == pytest.approx(BOOT_HOURS + 2 * HOURS)
    assert found.money is None, "the team has no prices"


def test_halves_of_a_gpu_share_it_and_two_gpus_need_the_larger_machine(tmp_path: Path) -> None:
    halves = on(TEAM + "resources: {gpus: 0.5}\n", tmp_path, max_workers=1)
    assert halves.machines["spot"][0] == 1
    assert halves.hours == pytest.approx(BOOT_HOURS + 2 * HOURS)
    large = on(TEAM + "resources: {gpus: 2}\n", tmp_path)
    assert {name: count for name, (count, _) in large.machines.items()} == {"spot": 0, "dear": 1}
    with pytest.raises(UserInputError, match="a-1: asks for 3 GPUs and 1 CPUs on one machine"):
        on(TEAM + "resources: {gpus: 3}\n", tmp_path)


def test_a_training_of_several_members_takes_one_place(tmp_path: Path) -> None:
    """Four cycles of one training, on three machines and on four cores: one after another."""
    text = TEAM.replace("{name: a, count: 3}", "{name: a, snapshots: 4}")
    assert on(text, tmp_path).hours == pytest.approx(BOOT_HOURS + HOURS)
    made = Planner(team_of(text), Store(tmp_path / "store"), tmp_path).plan()
    alone = Planner(team_of(TEAM.replace("count: 3", "seed: 1")), Store(tmp_path / "store"), tmp_path).plan()
    assert estimate.estimate_local(made, 4)[0] == pytest.approx(estimate.estimate_local(alone, 4)[0])


def test_fits_of_two_cores_take_turns_on_two(tmp_path: Path) -> None:
    one, two = (
        estimate.estimate_local(
            Planner(team_of(TEAM + f"resources: {{cpus: {cpus}}}\n"), Store(tmp_path / "store"), tmp_path).plan(), 2
        )[0]
        for cpus in (1, 2)
    )
    assert two == pytest.approx(2 * one)


def test_own_machines_say_nothing_before_they_run(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="names no machine types"):
        on(TEAM, tmp_path, available_node_types={})


def test_a_type_without_a_limit_has_the_cluster_s_and_one_without_a_size_says_nothing(tmp_path: Path) -> None:
    one = {"head": TYPES["head"], "any": {"resources": {"CPU": 4, "GPU": 1}}}
    assert on(TEAM, tmp_path, available_node_types=one).machines["any"][0] == 3
    with pytest.raises(UserInputError, match="any says no `resources:`"):
        on(TEAM, tmp_path, available_node_types={**one, "any": {"max_workers": 2}})


def test_machines_come_by_the_labels_that_jobs_prefer(tmp_path: Path) -> None:
    types = {**TYPES, "dear": {**TYPES["dear"], "labels": {"market": "dear"}}}
    either = on(TEAM + "resources: {labels: [{market: dear}, {market: cheap}]}\n", tmp_path, available_node_types=types)
    assert {name: count for name, (count, _) in either.machines.items()} == {"spot": 1, "dear": 1}, "two jobs on the dear one"
    alone = on(TEAM + "resources: {labels: {market: cheap}}\n", tmp_path, available_node_types=types, max_workers=1)
    assert {name: count for name, (count, _) in alone.machines.items()} == {"spot": 1, "dear": 0}
    with pytest.raises(UserInputError, match="no type in the file has that"):
        on(TEAM + "resources: {labels: {market: free}}\n", tmp_path, available_node_types=types)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEAM, "Disk: about 135 MB for what the trainings leave, and what the packed images take."),
        (
            TEAM.replace("folds: 0", "folds: 5"),
            "Disk: about 810 MB for what the trainings leave, and what the packed images take.",
        ),
        (
            "name: t\nmembers: [{name: a, arch: mobilenet_v3_small, weights: imagenet, freeze: backbone}]\n",
            "Disk: about 62 MB for what the trainings leave and 10 MB for published weights, and what the packed images take.",
        ),
        (
            "name: t\nfusion: [vote]\nmembers: [{name: a, arch: mobilenet_v3_small}]\n",
            "Disk: what the packed images and the networks of a take.",
        ),
    ],
)
def test_the_disk_that_a_sweep_needs_is_told(text: str, says: str) -> None:
    assert describe_disk(team_of(text), None).startswith(says)


def test_packed_images_count_by_their_size(tmp_path: Path) -> None:
    store = type("Packed", (Store,), {"record": SimpleNamespace(rows=50_000)})(tmp_path)
    assert describe_disk(team_of(TEAM), store).endswith("and 154 MB for the packed images.")
