"""What another member would bring to the vote: known where members are exchangeable, and checked on those that are there."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.metrics.another_member import Vote, expected_gains
from fusion.predictions import Floats, Labels, softmax

ROWS, CLASSES = 4000, 4


def exchangeable(members: int, seed: int = 0, noise: float = 1.5) -> tuple[Floats, Labels]:
    """Logits (M, n, C) of members that share a signal and have noise of their own, and the labels (n,)."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, ROWS)
    signal = 1.2 * np.eye(CLASSES)[labels] + draw.normal(0, 0.7, (ROWS, CLASSES))
    return signal + draw.normal(0, noise, (members, ROWS, CLASSES)), labels


def nll(probabilities: Floats, labels: Labels) -> float:
    return float(-np.log(probabilities[np.arange(ROWS), labels]).mean())


@pytest.mark.parametrize("members", [3, 6])
def test_the_forecast_is_what_one_more_member_brings(members: int) -> None:
    logits, labels = exchangeable(members + 1)
    probabilities = softmax(logits)
    vote = Vote(probabilities[:members], labels, 1.0, [[i] for i in range(members)])
    gains = vote.another(range(members))
    assert gains
    forecast = gains[1]
    assert forecast.error
    brought = nll(probabilities[:members].mean(0), labels) - nll(probabilities.mean(0), labels)
    assert forecast.interval[0] < brought < forecast.interval[1]
    assert forecast.mean == pytest.approx(brought, rel=0.3)
    assert forecast.error < 0.4 * forecast.mean


def test_members_that_say_the_same_forecast_nothing() -> None:
    logits, labels = exchangeable(1)
    vote = Vote(softmax(np.repeat(logits, 4, axis=0)), labels, 1.0, [[0], [1], [2], [3]])
    forecast = vote.another(range(4))
    assert forecast
    assert forecast[0].mean == 0.0
    assert forecast[1].mean == pytest.approx(0.0, abs=1e-12)


def test_all_that_one_training_makes_is_left_out_together() -> None:
    """Snapshots of one training: another training brings several networks at once."""
    logits, labels = exchangeable(4)
    probabilities = softmax(logits)
    vote = Vote(probabilities, labels, 1.0, [[0, 2], [1, 3]])
    without = nll(probabilities[[1, 3]].mean(0), labels)
    assert vote.brought(0).mean(1)[1] == pytest.approx(without - nll(probabilities.mean(0), labels))
    forecast = vote.another([0, 1])
    assert forecast is not None
    assert forecast[1].error is None, "two trainings are too few to check a forecast"
    assert Vote(probabilities, labels, 1.0, [[0, 1, 2, 3]]).another([0]) is None


def test_the_interval_grows_with_how_much_trainings_differ() -> None:
    gains = np.random.default_rng(0).normal(0.01, 0.1, (2, ROWS))
    one, two = [0.01, 0.01], [[0.0, 0.0], [0.02, 0.02]]
    widths = []
    for each in ([one], [one] * 3, two):
        low, high = expected_gains(gains, np.array(each))[1].interval
        widths.append(high - low)
    assert widths[0] == widths[1] < widths[2]
