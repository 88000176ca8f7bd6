"""Twenty kills of the chaos campaign: random processes of random sweeps, from an empty folder. Nothing is lost."""

from __future__ import annotations

from benchmarks.chaos import Tally, campaign

KILLS = 20
SEED = 4  # two sweeps share the home in its first round, and the tracking server comes and goes in its second


def test_twenty_kills_lose_nothing() -> None:
    tally = Tally()
    campaign(SEED, KILLS, tally, at_once=1)
    assert tally.broken == []
    assert sum(tally.kills.values()) >= KILLS
    assert tally.sweeps >= 2
