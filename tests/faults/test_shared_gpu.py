"""A team that leaves the number of GPUs open, on a machine whose GPU is none: its trainers compute on the CPU."""

from __future__ import annotations

from typing import Any

from tests.faults.nodes import Nodes
from tests.faults.place import Place, same


def test_a_trial_decides_how_many_share_and_changes_no_weight(place: Place, undisturbed: dict[str, Any]) -> None:
    nodes = Nodes(place.env())
    try:
        nodes.add(cpus=2, gpus=1)
        summary = place.sweep("--address", nodes.address, **nodes.env)
    finally:
        nodes.end()
    said = place.said()
    assert "a: trying how many such trainings share a GPU" in said
    assert "images a second by the number of trainings: 1: " in said
    assert ", 2: " in said, "both members are of a kind, and could run at once"
    same(summary, undisturbed)
