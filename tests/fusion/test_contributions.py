"""What each member brings to the vote: values that sum to the vote's gain, against hand-made cases."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from fusion.metrics import contributions as shapley
from fusion.metrics.calibration import calibrated_losses, log_probabilities
from fusion.metrics.contributions import contributions, shapley_values
from fusion.predictions import Floats, softmax
from tests.factories import table

NAMES = ("a", "b", "c")


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (3.0, 0.3, 1.0)])
def test_values_sum_to_what_the_vote_gains_over_the_mean_member(scales: tuple[float, ...]) -> None:
    """Each candidate has a temperature of its own, so members that are far too sure, or not sure enough, are no worse for it."""
    one = table(500)
    probabilities = softmax(one.logits * np.array(scales)[:, None, None])
    found = contributions(NAMES, probabilities, one.labels)
    vote = probabilities.mean(0)
    of_members = [calibrated_losses(log_probabilities(p), one.labels).mean() for p in probabilities]
    gained = np.mean(of_members) - calibrated_losses(log_probabilities(vote), one.labels).mean()
    right = (vote.argmax(1) == one.labels).mean() - (probabilities.argmax(2) == one.labels).mean()
    assert sum(one.nll for one in found.values()) == pytest.approx(gained, abs=1e-4)
    assert sum(one.accuracy for one in found.values()) == pytest.approx(right)
    for value in found.values():
        assert value.nll_interval[0] < value.nll < value.nll_interval[1]
        assert value.accuracy_interval[0] <= value.accuracy <= value.accuracy_interval[1]


def test_a_member_that_knows_nothing_brings_less_than_the_others_and_equal_members_bring_the_same() -> None:
    one = table(2000, skill=(1.5, 1.5, 0.0))
    logits = np.stack([one.logits[0], one.logits[0], one.logits[2]])
    found = contributions(NAMES, softmax(logits), one.labels)
    assert found["a"].nll == pytest.approx(found["b"].nll)
    assert found["c"].nll < found["a"].nll
    assert found["c"].accuracy < found["a"].accuracy


def test_exact_values_are_the_mean_over_all_orders() -> None:
    draw = np.random.default_rng(0)
    values: dict[tuple[int, ...], Floats] = {}

    def value(subset: tuple[int, ...]) -> Floats:
        assert list(subset) == sorted(subset)
        return values.setdefault(subset, draw.normal(size=7))

    expected = np.zeros((4, 7))
    for order in permutations(range(4)):
        for k, member in enumerate(order):
            expected[member] += value(tuple(sorted(order[: k + 1]))) - value(tuple(sorted(order[:k])))
    assert np.allclose(shapley_values(value, 4), expected / 24)


def test_of_many_members_drawn_orders_come_close_to_the_exact_values(monkeypatch: pytest.MonkeyPatch) -> None:
    one = table(300, members=6, skill=(1.5, 1.2, 1.0, 0.8, 0.4, 0.0))
    names = tuple("abcdef")
    exact = contributions(names, softmax(one.logits), one.labels)
    monkeypatch.setattr(shapley, "MAX_EXACT_MEMBERS", 2)
    sampled = contributions(names, softmax(one.logits), one.labels)
    for name in names:
        assert sampled[name].nll == pytest.approx(exact[name].nll, abs=0.05)
    assert sum(one.nll for one in sampled.values()) == pytest.approx(sum(one.nll for one in exact.values()))
