"""What the fusion step says beside the scores: what an inference costs, and what may be wrong with members and fusions."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fusion.predictions import FusionInputs, TeamPredictions
from fusion.selection.fitting import fit_all
from fusion.selection.networks import CandidateNetworks
from orchestrator.fusing.costs import InferenceCost, all_cores, efforts, measure_inference
from orchestrator.fusing.fitted_team import Artifacts
from orchestrator.fusing.progress import Steps, follow
from orchestrator.fusing.warnings import still_improving, warn
from tests.factories import CLASSES, member, record, table
from workers.diagnostics.cores import available_cores
from workers.diagnostics.waiting import wait_until
from workers.models.build import build
from workers.models.multiply_adds import multiply_adds
from workers.models.network import Network
from workers.storage.artifacts import MemberArtifact


def team(rows: int = 400, **keys: object) -> TeamPredictions:
    fuse, numbers = table(rows, **keys), np.arange(rows)  # type: ignore[arg-type]
    return TeamPredictions(
        ("a", "b", "c"), tuple("wxyz"), FusionInputs(fuse, None, np.zeros(0, int), ()), fuse, numbers, numbers, numbers
    )


def network(width: int) -> Network:
    return build(member(name="a", width=width), CLASSES, 8).eval()


def test_each_network_is_measured_once_however_many_fusions_ask_it() -> None:
    given, networks = team(), [network(width) for width in (4, 8, 16)]
    calls = []
    for one in networks:
        one.trunk.register_forward_hook(lambda *_: calls.append(1))
    images = torch.zeros(64, 8, 8, 3, dtype=torch.uint8)
    counts = []
    for fusions in ((), ("vote", "weighted", "cascade", "stack")):
        calls.clear()
        fitted = fit_all(given, fusions)
        costs = measure_inference(fitted, CandidateNetworks(networks), images, 1)
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0
    alone = [multiply_adds(one, 8) for one in networks]
    assert [costs[name].multiply_adds for name in given.names] == alone
    assert costs["vote"].multiply_adds == sum(alone)
    assert costs["cascade"].multiply_adds >= sum(alone), "the exported file runs every network"
    assert [costs[name].networks for name in ("a", "vote", "cascade")] == [1, 3, 3]
    assert costs["stack"].multiply_adds == sum(alone) + 3 * CLASSES * CLASSES
    assert all(cost.seconds > 0 and cost.seconds_all_cores > 0 for cost in costs.values())


def test_measured_times_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was busy in one of two reruns gives the same efforts, which decide."""
    given, found = team(), []
    for seconds in (60.0, 7.3):
        epoch = {"train/loss": 0.5, "seconds": seconds, "time": 7.0}
        monkeypatch.setattr(MemberArtifact, "manifest", lambda self, e=epoch: record(train_seconds=e["seconds"], history=[e]))
        fitted = fit_all(given, ("vote",))
        artifacts = Artifacts(dict.fromkeys(given.names, Path("nowhere")), {}, None)
        fitted_team: Any = SimpleNamespace(team=given, fitted=fitted, artifacts=artifacts)
        found.append(efforts(fitted_team, {name: InferenceCost(seconds, seconds, 1e6, 1) for name in fitted}))
    assert found[0] == found[1]


def test_all_cores_are_used_while_fusing_and_given_back() -> None:
    torch.set_num_threads(1)
    with all_cores() as threads:
        assert threads == 1
        assert torch.get_num_threads() == available_cores()
    assert torch.get_num_threads() == 1


def test_a_member_at_chance_is_called_out_by_name() -> None:
    given = team(skill=(2.0, 2.0, 0.0))
    told = warn(given, fit_all(given, ("vote",)), ("vote",), {})
    assert [text.split()[0] for text in told if "better than guessing" in text] == ["c"]
    assert "--drop c" in told[0]


def test_a_fusion_that_is_surely_worse_than_the_vote_is_flagged() -> None:
    given = team(rows=2000)
    fitted = fit_all(given, ("vote", "weighted"))
    fitted["weighted"] = replace(fitted["weighted"], nested=fitted["vote"].nested)
    assert warn(given, fitted, ("vote", "weighted"), {}) == []
    fitted["weighted"] = replace(fitted["weighted"], nested=fitted["c"].nested)
    [text] = warn(given, fitted, ("vote", "weighted"), {})
    assert text.startswith("weighted is surely less often right than the vote: on ")


def test_a_doubt_is_told_unless_rows_that_the_fusion_never_saw_show_its_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    given = team(rows=2000)
    fitted = fit_all(given, ("vote", "weighted"))
    monkeypatch.setattr(type(fitted["weighted"].method), "doubts", lambda self, name: [f"{name} may not carry over."])
    fitted["weighted"] = replace(fitted["weighted"], nested=fitted["vote"].nested)
    assert warn(given, fitted, ("vote", "weighted"), {}) == ["weighted may not carry over."]
    right = np.full_like(fitted["vote"].nested, 0.01)
    right[np.arange(len(right)), given.inputs.fuse.labels] = 1
    fitted["weighted"] = replace(fitted["weighted"], nested=right)
    assert warn(given, fitted, ("vote", "weighted"), {}) == []


@pytest.mark.parametrize(
    ("accuracies", "is_told"),
    [([0.3, 0.5, 0.6, 0.7], True), ([0.3, 0.89, 0.9, 0.9], False), ([0.9], False), ([0.9, 0.905], False)],
)
def test_a_training_that_still_improved_is_called_out(accuracies: list[float], is_told: bool) -> None:
    history = [{"fuse/accuracy": accuracy, "fuse/loss": 1 - accuracy} for accuracy in accuracies]
    assert (still_improving("a", history, 1000) is not None) == is_told
    assert still_improving("a", history, 4) is None, "of four rows no accuracy is known to a point"
    assert still_improving("a", [{"seconds": 1.0}] * 5, 1000) is None, "there may be no fuse rows to follow"


def test_nothing_is_said_of_a_fusion_that_could_not_be_made_beside_that_it_was_left_out() -> None:
    given = team()
    assert warn(given, fit_all(given, ("vote", "student")), ("vote", "student"), {}) == [
        "student was left out: no student was trained for exactly these members."
    ]


def test_each_step_of_fusing_is_said_while_it_is_done(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "logs" / "fusing.steps"
    with follow(path, said.append):
        steps = Steps(path)
        with steps.step("fitting vote"):
            time.sleep(0.2)
        assert wait_until(lambda: said, 5, 0.05), "before the next step begins"
        with steps.step("too quick to be told"):
            pass
        with steps.step("exporting vote"):
            time.sleep(0.1)
    assert [line.rpartition(":")[0] for line in said] == ["fusing: fitting vote", "fusing: exporting vote"]
    assert list(steps.seconds) == ["fitting vote", "too quick to be told", "exporting vote"]


def test_steps_that_cannot_be_written_lose_nothing_but_the_line(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    said: list[str] = []
    steps = Steps(tmp_path / "logs" / "fusing.steps")
    with follow(tmp_path / "logs" / "fusing.steps", said.append), steps.step("fitting"):
        time.sleep(0.1)
    assert list(steps.seconds) == ["fitting"]
    assert said == []
