"""Trainings that make several members, and students: killed anywhere, they go on to the same weights, and make nothing twice."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.place import Place, begun, same

TEAM = """\
version: 1
name: tiny
data: {dataset: digits, folds: 0}
train: {epochs: 6, batch_size: 64, schedule: one_cycle}
defaults: {arch: "small:Small", optimizer: {kind: sgd, lr: 0.05}, augment: [crop]}
fusion: [vote, student]
student: {epochs: 3, seed: 4}
members:
  - {name: cyc, seed: 1, snapshots: 3}
  - {name: avg, seed: 2, average: {kind: swa, last: 0.5}}
"""
MEMBERS = ("cyc.1", "cyc.2", "cyc.3", "avg", "avg.swa")
# An epoch has twenty steps; the cycles end after two, four and six epochs.
KILLS = (
    "fit.step@cyc:10:kill",
    "fit.step@cyc:50:kill",
    "checkpoint.publish@cyc:3:kill",
    "artifact.publish@cyc:2:kill",
    "artifact.published@cyc:1:kill",
    "fit.step@avg:70:kill",
    "artifact.publish@avg:1:kill",
    "artifact.publish@avg:2:kill",
    "fit.step@student:30:kill",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Place(tmp_path_factory.mktemp("whole") / "p", TEAM).sweep("--inline")


def artifacts(place: Place) -> dict[str, int]:
    """When each artifact was published."""
    return {path.parent.parent.name: path.stat().st_mtime_ns for path in place.home.glob("jobs/*/fit/manifest.json")}


@pytest.mark.parametrize("fault", KILLS)
def test_a_kill_anywhere_changes_no_weight_and_makes_nothing_twice(
    fault: str, place_of: Callable[[str], Place], whole: dict[str, Any]
) -> None:
    place = place_of(TEAM)
    place.sweep("--inline", fault=fault, code=-signal.SIGKILL)
    assert place.happened() == [fault]
    before = artifacts(place)
    summary = place.sweep("--inline")
    same(summary, whole, MEMBERS)
    assert summary["student"]["weights_sha256"] == whole["student"]["weights_sha256"]
    assert before.items() <= artifacts(place).items(), "what was published stays as it is"
    assert summary["trained"] == len(MEMBERS) + 1 - len(before)
    assert begun(place.home) == []


def test_a_trainer_that_is_killed_between_two_snapshots_goes_on_where_it_was(
    place_of: Callable[[str], Place], whole: dict[str, Any]
) -> None:
    place = place_of(TEAM)
    summary = place.sweep(fault="fit.step@cyc:50:kill")
    assert place.happened() == ["fit.step@cyc:50:kill"]
    assert "cyc: retry" in place.said()
    assert "logs/cyc.log" in place.said()
    same(summary, whole, MEMBERS)
    said = (place.folder / place.said().partition("; log: ")[2].split()[0]).read_text()
    assert "published cyc.1" in said
    assert "the trainer died" in said


def test_an_average_asked_for_later_is_trained_for_and_what_is_done_stays(
    place_of: Callable[[str], Place], whole: dict[str, Any]
) -> None:
    place = place_of(
        TEAM.replace(", average: {kind: swa, last: 0.5}", "")
        .replace("[vote, student]", "[vote]")
        .replace("student: {epochs: 3, seed: 4}\n", "")
    )
    first = place.sweep("--inline")
    assert first["members"]["avg"]["weights_sha256"] == whole["members"]["avg"]["weights_sha256"]
    before = artifacts(place)
    place.write(TEAM)
    summary = place.sweep("--inline")
    same(summary, whole, MEMBERS)
    assert summary["trained"] == 2, "the average, and the student of all members"
    assert before.items() <= artifacts(place).items()


def test_two_sweeps_at_once_share_the_trainings_that_both_ask_for(
    place_of: Callable[[str], Place], whole: dict[str, Any]
) -> None:
    """One asks for avg alone, the other for avg and its average: neither disturbs the other."""
    place = place_of(TEAM)
    alone = (
        TEAM.replace("name: tiny", "name: alone")
        .replace(", average: {kind: swa, last: 0.5}", "")
        .replace("[vote, student]", "[vote]")
        .replace("student: {epochs: 3, seed: 4}\n", "")
    )
    place.start("--inline")
    place.beside(alone).sweep("--inline")
    assert place.process is not None
    assert place.process.wait(timeout=240) == 0, place.said()
    same(place.sweep("--inline"), whole, MEMBERS)
