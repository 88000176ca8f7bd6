"""One member that two processes train together: one of them killed, the sweep interrupted, its driver killed."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from tests.faults.place import TEAM, Place, left, same

PAIR = TEAM.replace("{name: a}", "{name: a, resources: {workers: 2, cpus: 2}}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Place(tmp_path_factory.mktemp("pair") / "p", PAIR).sweep()


def test_one_of_two_processes_killed_in_mid_epoch_both_go_on_to_the_same_weights(pair: dict[str, Any], place: Place) -> None:
    place.write(PAIR)
    summary = place.sweep(fault="fit.step@a:30:kill")
    assert place.happened() == ["fit.step@a:30:kill"]
    assert "a: retry" in place.said()
    same(summary, pair)
    manifest = json.loads((place.fits()["a"] / "fit" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert manifest["resumed_from"] == 1, "from the checkpoint of the first epoch, and not from the start"


def test_a_failure_of_the_first_process_ends_the_other_and_keeps_its_reason(pair: dict[str, Any], place: Place) -> None:
    """Only the first writes checkpoints. The second would wait for it in the next step, for a day."""
    place.write(PAIR)
    began = time.monotonic()
    summary = place.sweep(fault="checkpoint.half@a:2:raise")
    assert place.happened() == ["checkpoint.half@a:2:raise"]
    assert "a: retry  InjectedFaultError: injected at checkpoint.half" in place.said()
    assert time.monotonic() - began < 150
    same(summary, pair)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_of_the_driver_leaves_no_process_and_loses_nothing(
    number: signal.Signals, pair: dict[str, Any], place: Place
) -> None:
    place.write(PAIR.replace("epochs: 3", "epochs: 300"))
    process = place.start()
    place.wait_for("a: epoch", 240)
    everybody = place.watch()
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == (130 if number == signal.SIGINT else -9), place.said()
    assert time.monotonic() - began < 15
    assert left(everybody) == []
    assert place.checkpoints("a")
    if number == signal.SIGINT:
        assert place.printed()["state"] == "interrupted"
        assert any(not p.name.endswith("-00000000") for p in place.checkpoints("a")), "between two steps"


def test_more_processes_than_any_machine_has_room_for_are_told(place: Place) -> None:
    place.write(PAIR.replace("workers: 2, cpus: 2", "workers: 8, cpus: 64") + "quorum: 1\n")
    summary = place.sweep(code=3)
    assert summary["members"]["a"]["reason"].startswith("UNSCHEDULABLE: asks for 0 GPUs and 64 CPUs on one machine")
