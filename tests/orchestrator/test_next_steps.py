"""What would make the vote better: another member, known where members are exchangeable; and how it is said."""

from typing import Any

import numpy as np
import pytest

from fusion.predictions import Floats, Labels, softmax
from fusion.results import ExpectedGain, FusionDetails, NextStep
from orchestrator.fusing.next_steps import forecast_gains
from orchestrator.reporting.next_steps import next_step_rows, next_steps_text
from tests.orchestrator.test_verdict import details

CLASSES = 4


def exchangeable(members: int, rows: int, seed: int) -> tuple[Floats, Labels]:
    """Probabilities (M, n, C) of members that share a signal and have noise of their own, and the labels (n,)."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, rows)
    signal = 1.2 * np.eye(CLASSES)[labels] + draw.normal(0, 0.7, (rows, CLASSES))
    return softmax(signal + draw.normal(0, 1.5, (members, rows, CLASSES))), labels


def nll(probabilities: Floats, labels: Labels) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("members", [3, 6])
def test_the_interval_holds_what_one_more_member_brings(members: int) -> None:
    """At 95 %, in 400 draws: a t interval, for so few members say little of how they differ."""
    covered, means, gains = 0, [], []
    for seed in range(400):
        probabilities, labels = exchangeable(members + 1, 400, seed)
        forecast = forecast_gains(probabilities[:members], labels, 1.0, [[i] for i in range(members)])[1]
        gain = nll(probabilities[:members].mean(0), labels) - nll(probabilities.mean(0), labels)
        covered += forecast.interval[0] <= gain <= forecast.interval[1]
        means.append(forecast.mean)
        gains.append(gain)
    assert 0.92 <= covered / 400 <= 0.995
    assert np.mean(means) == pytest.approx(np.mean(gains), rel=0.15)


def test_members_that_say_the_same_bring_nothing() -> None:
    probabilities, labels = exchangeable(1, 300, 0)
    accuracy, loss = forecast_gains(np.repeat(probabilities, 4, axis=0), labels, 1.0, [[0], [1], [2], [3]])
    assert accuracy.mean == 0.0
    assert loss.mean == pytest.approx(0.0, abs=1e-12)


def test_all_members_of_one_training_are_left_out_together() -> None:
    """Snapshots of one training: another training brings several networks at once."""
    probabilities, labels = exchangeable(4, 300, 0)
    forecast = forecast_gains(probabilities, labels, 1.0, [[0, 2], [1, 3]])[1]
    vote = nll(probabilities.mean(0), labels)
    brought = [nll(probabilities[others].mean(0), labels) - vote for others in ([1, 3], [0, 2])]
    assert forecast.mean == pytest.approx(np.mean(brought) / 3)


def step(kind: str, gain: float, seconds: float, width: float = 0.001, **keys: Any) -> NextStep:
    expected, accuracy = ExpectedGain(gain, (gain - width, gain + width)), ExpectedGain(0.004, (0.001, 0.007))
    given = {"kind": kind, "accuracy": accuracy, "nll": expected, "train_seconds": seconds, "compute_cost": 2.0, "basis": "so"}
    return NextStep.model_validate(given | keys)


def with_steps(*steps: NextStep, **choice: Any) -> FusionDetails:
    return details("vote", **choice).model_copy(update={"next_steps": list(steps)})


def test_the_most_promising_step_is_said_with_its_gain_and_its_cost() -> None:
    member, flips = step("member", 0.02, 600, money={"spot": 0.031}), step("flips", 0.03, 0, width=0.05)
    assert next_steps_text(with_steps(flips, member)) == (
        "Next: another member makes the vote better by 0.020 nats, 0.019 to 0.021. "
        "It takes 10.0 minutes of training or 0.03 spot, and 2.00x the vote's inference."
    )
    assert "0.4 points, 0.1 to 0.7" in str(next_steps_text(with_steps(member, metric="accuracy")))
    assert ", which may be chance. It takes no training, and" in str(next_steps_text(with_steps(flips)))


def test_a_step_that_does_not_help_is_not_said() -> None:
    assert next_steps_text(with_steps(step("flips", -0.02, 0))) is None
    assert next_steps_text(with_steps()) is None
    assert next_steps_text(with_steps(step("flips", 0.02, 0), is_at_chance=True)) is None, "other things come first"


def test_the_table_has_both_scores() -> None:
    [row] = next_step_rows(with_steps(step("flips", 0.01, 0)))
    assert (row["name"], row["points"]) == ("looking at each image and its mirror image", "+0.40 (+0.10 to +0.70)")
    assert row["nats"] == "+0.0100 (+0.0090 to +0.0110)"
