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
    until = time.monotonic() + 300
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


def test_spot_is_preferred_and_on_demand_the_fallback(place: Place) -> None:
    """`a` wants spot alone, `b` spot first, `c` what nobody has; on machines where a fit must not be it would diverge."""
    made = Nodes(place.env())
    try:
        made.add(CONCLAVE_FAULT="fit.step:1:nan")
        made.add(labels="market=on-demand", CONCLAVE_FAULT="fit.step@a:1:nan")
        made.add(labels="market=spot")
        text = TEAM.replace("{name: a}", "{name: a, resources: {labels: {market: spot}}}")
        text = text.replace("seed: 5}", "seed: 5, resources: {labels: [{market: spot}, {market: on-demand}]}}")
        place.write(text + "  - {name: c, resources: {labels: {market: free}}}\n")
        process = place.start("--address", made.address, **made.env)
        assert process.wait(timeout=600) == 3, place.said()
        members = place.printed()["members"]
        assert {name: member["state"] for name, member in members.items()} == {"a": "done", "b": "done", "c": "unschedulable"}
        assert "with the labels {market: free}" in members["c"]["reason"]
    finally:
        made.end()
