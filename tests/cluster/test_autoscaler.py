"""A team on Ray's real autoscaler, from no machine to one a member and back to none, one of them lost in between."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.autoscaler import Autoscaler
from tests.faults.place import TEAM, Place, same

FOUR = TEAM.replace("name: a}", "name: a}\n  - {name: c, seed: 7}\n  - {name: d, seed: 9}") + "resources: {gpus: 1, cpus: 1}\n"
NO_ERRORS = FOUR + "retries: {errors: 0}\nheartbeat: {seconds: 600}\n"  # a busy machine takes minutes to start four others
STOPPED = [f"fit.step@{name}:30:stop" for name in "abcd"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "p", NO_ERRORS)
    yield made
    made.end()


@pytest.fixture
def cluster(place: Place) -> Iterator[Autoscaler]:
    """Each trainer stops in its second epoch, once."""
    made = Autoscaler(4, place.env(fault=",".join(STOPPED)))
    yield made
    made.end()


@pytest.mark.nightly
def test_more_members_than_machines_take_their_turns(tmp_path: Path) -> None:
    """The autoscaler calls a demand beyond its limit infeasible, as it does one that no machine could ever hold."""
    place, cluster = Place(tmp_path / "p", TEAM + "resources: {gpus: 1, cpus: 1}\n"), Autoscaler(1)
    try:
        summary = place.sweep("--address", cluster.address, **cluster.env)
        assert {member["state"] for member in summary["members"].values()} == {"done"}
        assert cluster.workers() <= 1
    finally:
        place.end()
        cluster.end()


def test_from_no_machine_to_four_and_back_with_one_lost_in_between(place: Place, cluster: Autoscaler, tmp_path: Path) -> None:
    reference = Place(tmp_path / "undisturbed", FOUR).sweep("--inline")
    assert cluster.workers() == 0
    began, told = time.monotonic(), {}
    process = place.start("--address", cluster.address, **cluster.env)
    cluster.wait_for(lambda: place.happened() == STOPPED, 300, "four members in training")
    assert cluster.workers() == 4
    told["four machines, and each member in its second epoch"] = time.monotonic() - began
    stopped = [int((place.folder / "faults" / name).read_text()) for name in STOPPED]
    cluster.kill_node_of(stopped[0])
    for pid in stopped[1:]:
        os.kill(pid, signal.SIGCONT)
    assert process.wait(timeout=400) == 0, place.said()
    told["trained and fused"] = time.monotonic() - began
    assert "a: retry  its machine went away" in place.said()
    same(place.printed(), reference, ("a", "b", "c", "d"))
    cluster.wait_for(lambda: cluster.workers() == 0, 180, "back to the head alone")
    told["back to the head alone"] = time.monotonic() - began
    print("\n".join(f"{what} after {seconds:.0f} s" for what, seconds in told.items()))
