"""What to do next, in the order of gain for its cost, and in words."""

from __future__ import annotations

from typing import Any

from fusion.results import ExpectedGain, FusionDetails, NextStep
from orchestrator.fusing.next_steps import ranked
from orchestrator.reporting.outlook import next_step_rows, next_steps_text
from tests.orchestrator.test_verdict import details


def step(kind: str, nll: float | None, seconds: float, width: float = 0.001, **keys: Any) -> NextStep:
    expected = None if nll is None else ExpectedGain(nll, (nll - width, nll + width), keys.pop("error", None))
    accuracy = expected and ExpectedGain(0.004, (0.001, 0.007))
    given = {"kind": kind, "accuracy": accuracy, "nll": expected, "train_seconds": seconds, "compute_cost": 2.0, "basis": "so"}
    return NextStep.model_validate(given | keys)


def outlook(*steps: NextStep, **choice: Any) -> FusionDetails:
    return details("vote", choice).model_copy(update={"next_steps": list(steps)})


def test_the_step_that_gains_most_for_its_training_comes_first_and_what_nobody_knows_last() -> None:
    free, good, cheap, bad = (step("flips", 0.002, 0), step("recipe", 0.02, 600), step("seed", 0.01, 200), step("seed", -0.01, 1))
    unknown = step("student", None, 100)
    assert ranked([unknown, bad, good, cheap, free], "nll") == [free, cheap, good, bad, unknown]
    perhaps = step("flips", 0.0005, 0)
    assert ranked([perhaps, good], "nll") == [good, perhaps], "what is free and may gain nothing comes behind what surely gains"


def test_the_next_best_step_is_said_with_its_gain_its_cost_and_how_far_such_forecasts_are_off() -> None:
    first = step("recipe", 0.02, 600, money={"spot": 0.031}, error=0.0042)
    assert next_steps_text(outlook(first)) == (
        "Next best step: another member with a recipe of its own would make the vote better by 0.0200 nats (0.0190 to 0.0210). "
        "It takes 10.0 minutes of training or 0.03 spot, and 2.00x the vote's computing for an image. "
        "Such a forecast, made for each member that is there, is 0.0042 nats off on average."
    )
    points = next_steps_text(outlook(first, metric="accuracy"))
    assert points
    assert "0.40 points (0.10 to 0.70)" in points


def test_a_gain_that_may_be_chance_is_not_promised() -> None:
    doubtful = next_steps_text(outlook(step("flips", 0.02, 0, width=0.03)))
    assert doubtful
    assert doubtful.startswith(
        "Next: no step is sure to help. The most promising one: looking at each image and its mirror image"
    )
    assert "It takes no training, and" in doubtful
    first = step("flips", 0.02, 0)
    assert next_steps_text(outlook(step("flips", -0.02, 0))) == (
        "Next: nothing whose gain this sweep can tell would make the vote better."
    )
    assert next_steps_text(outlook(step("student", None, 9))) is None
    assert next_steps_text(outlook()) is None
    assert next_steps_text(outlook(first, is_at_chance=True)) is None, "other things come first where nothing was learned"


def test_the_table_says_of_what_there_is_no_forecast() -> None:
    known, unknown = next_step_rows(outlook(step("seed", 0.01, 60, member="a", error=0.002), step("student", None, 60)))
    assert (known["name"], known["nats"], known["nats_off"]) == ("another seed of a", "+0.0100 (+0.0090 to +0.0110)", "0.0020")
    assert (unknown["points"], unknown["nats"], unknown["nats_off"]) == ("not forecast", "not forecast", "")
