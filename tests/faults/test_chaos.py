"""Kills of the chaos campaign: random processes of random sweeps, from an empty folder. Nothing is lost."""

from __future__ import annotations

import pytest

from benchmarks.chaos import Tally, campaign

SEED = 4  # two sweeps share the home in its first round, and the tracking server comes and goes in its second


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.nightly)])
def test_random_kills_lose_nothing(kills: int) -> None:
    tally = Tally()
    campaign(SEED, kills, tally, at_once=1)
    assert tally.broken == []
    assert sum(tally.kills.values()) >= kills
    assert tally.sweeps >= 2
