"""Machines that go away in the middle of a fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.nodes import Nodes
from tests.faults.place import TEAM, Place, same

NO_ERRORS = TEAM + "retries: {errors: 0}\n"


@pytest.fixture
def nodes(place: Place) -> Iterator[Nodes]:
    """A machine of one core; the trainer of `a` stops in its second epoch."""
    made = Nodes(place.env(fault="fit.step@a:30:stop"))
    made.add()
    yield made
    made.end()


def _stopped(place: Place) -> int:
    """The process id of the trainer that the fault stopped."""
    until = time.monotonic() + 90
    while not place.happened():
        assert time.monotonic() < until, place.said()
        time.sleep(0.1)
    return int((place.folder / "faults" / place.happened()[0]).read_text())


def test_a_machine_removed_in_mid_fit_moves_the_fit_to_the_next(place: Place, nodes: Nodes, undisturbed: dict[str, Any]) -> None:
    """The next one comes a while after the only one went away: nothing is given up for that."""
    place.write(NO_ERRORS)
    process = place.start("--address", nodes.address, **nodes.env)
    nodes.remove(nodes.holding(_stopped(place)))
    while "its machine went away" not in place.said():
        assert process.poll() is None, place.said()
        time.sleep(0.1)
    time.sleep(3)
    nodes.add()
    assert process.wait(timeout=400) == 0, place.said()
    assert "a: retry  its machine went away" in place.said()
    same(place.printed(), undisturbed)
