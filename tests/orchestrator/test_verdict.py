"""The verdict in words: each line read aloud, for a team in each of the situations that there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusion.predictions import FusionInputs, TeamPredictions
from fusion.results import (
    Abstention,
    Candidate,
    Choice,
    Contribution,
    Diversity,
    FusionDetails,
    Gain,
    LossDifference,
    Metric,
    Scores,
)
from fusion.selection.compare import compare
from fusion.selection.costs import TrainingCost
from fusion.selection.fitting import fit_all
from fusion.selection.networks import Effort
from fusion.selection.recommendation import best_single, recommend
from orchestrator.reporting.verdict import abstention_text, contributions_text, diversity_text, doubts_text, verdict
from tests.factories import table

SETS = Abstention(coverage=0.9, level=0.8, on_test=0.913, mean_size=1.2, certain=0.8)
BETTER = Gain(0.02, (0.012, 0.028), 0.0001)


def candidate(accuracy: float, nll: float, networks: int, training: float, gain: Gain | None = None) -> Candidate:
    scores = Scores(accuracy=accuracy, nll=nll, brier=0.1, ece=0.01)
    return Candidate(
        fuse=scores, temperature=1.0, train_seconds=60 * training, train_cost=training, test=scores, against_single=gain,
        inference_cost=1.1 * networks, multiply_adds=1e6 * networks, compute_cost=networks, networks=networks,
    )  # fmt: skip


def details(recommended: str, gain: Gain | None = BETTER, **choice: Any) -> FusionDetails:
    """Three candidates. On *fuse* the stack scores best, then the vote."""
    losses = {"plain": 0.310, "vote": 0.250, "stack": 0.240}
    differences = {
        name: LossDifference(
            loss - losses[recommended], (loss - losses[recommended] - 0.02, loss - losses[recommended] + 0.02), 0.0
        )
        for name, loss in losses.items()
        if name != recommended
    }
    cheaper = {"plain": [], "vote": ["plain"], "stack": ["plain", "vote"]}[recommended]
    given = {
        "metric": "nll", "tolerance": 0.01, "rows": 500, "has_few_rows": False, "is_at_chance": False,
        "best_score": recommended, "competing": ["plain", "vote", "stack"], "cheaper": cheaper, "losses": losses,
        "behind_best": {}, "differences": differences, "rows_needed": {}, **choice,
    }  # fmt: skip
    return FusionDetails(
        recommended=recommended, choice=Choice.model_validate(given), best_single="plain", classes=["x", "y"],
        rows={"fit": 4000, "fuse": 500, "test": 1000},
        candidates={
            "plain": candidate(0.90, 0.31, 1, 1.0, Gain(0.0, (0.0, 0.0), 1.0)),
            "vote": candidate(0.92, 0.25, 3, 3.0, gain),
            "stack": candidate(0.92, 0.24, 3, 15.0, gain),
        },
        diversity=Diversity(confusion={}, pairs=[], oracle=0.95, disagreement_over_error=0.5, vote_accuracy=[], verdict=""),
        hardest=[], warnings=[], suspected=0, abstention=SETS,
    )  # fmt: skip


def test_the_best_score_is_explained_in_four_lines() -> None:
    assert verdict(details("stack", rows_needed={"vote": 3217}), "digits") == [
        "Use stack: 3 networks, the best of 3 candidates (loss 0.240 on 500 fuse images; vote 0.250, best single network 0.310).",
        "On 1,000 test images it is right on 92.0% (90.0% for the best single network, plain; +2.0 points, +1.2 to +2.8), "
        "with a loss of 0.240 (0.310 for plain).",
        "How sure: the order of stack and vote (0.010 nats, -0.010 to 0.030) is uncertain; "
        "stack surely beats the best single network (0.070 nats, 0.050 to 0.090).",
        "If cost matters: plain takes a third of the computing for an image, and loses 0.070 nats, 0.050 to 0.090. "
        "`conclave export digits --method plain`",
    ]


def test_a_cheaper_candidate_says_what_it_may_lose_and_to_which() -> None:
    first, second, third, _ = verdict(details("vote", best_score="stack"), "digits")
    assert first == (
        "Use vote: 3 networks, the cheapest shown to be at most 0.01 nats worse than stack, the best of 3 candidates "
        "(loss 0.250 on 500 fuse images; stack 0.240, best single network 0.310)."
    )
    assert second.endswith("with a loss of 0.250 (0.310 for plain, 0.240 for stack).")
    assert third.startswith("How sure: the order of vote and stack (-0.010 nats, -0.030 to 0.010) is uncertain;")


def test_a_better_candidate_within_the_tolerance_is_named_as_such() -> None:
    differences = {"stack": LossDifference(-0.005, (-0.008, -0.002), 0.0), "plain": LossDifference(0.06, (0.05, 0.07), 0.0)}
    third = verdict(details("vote", best_score="stack", differences=differences), "digits")[2]
    assert third == (
        "How sure: stack scores better (0.005 nats, 0.002 to 0.008), which is within the tolerance; "
        "vote surely beats the best single network (0.060 nats, 0.050 to 0.070)."
    )
    few = verdict(details("vote", differences=differences, competing=["plain", "vote"]), "digits")[2]
    assert "but 500 images are too few to fit it" in few


def test_what_a_smaller_answer_needs_is_said() -> None:
    [*_, last] = verdict(details("stack", cheaper=["vote"], rows_needed={"vote": 3217}), "digits")
    assert last == (
        "If cost matters: vote takes a fifth of the training, and loses 0.010 nats, -0.010 to 0.030; about 3,300 fuse "
        "images would show whether it is good enough. `conclave export digits --method vote`"
    )


def test_a_single_network_is_not_compared_with_itself() -> None:
    first, second, third = verdict(details("plain"), "digits")
    assert first.startswith("Use plain: 1 network, the best of 3 candidates (loss 0.310 on 500 fuse images; vote 0.250).")
    assert second == (
        "On 1,000 test images it is right on 90.0%, with a loss of 0.310 (0.240 for stack). "
        "Most accurate there: vote, 92.0%, but test images choose nothing."
    )
    assert third.startswith("How sure: stack scores better (0.070 nats, 0.050 to 0.090)")


def test_accuracies_are_per_cent_and_differences_points() -> None:
    text = "\n".join(verdict(details("stack", metric="accuracy", losses={"plain": 0.1, "vote": 0.09, "stack": 0.08}), "digits"))
    assert "accuracy 92.0% on 500 fuse images; vote 91.0%, best single network 90.0%" in text
    assert "(7.0 points, 5.0 to 9.0)" in text
    assert "nats" not in text
    assert "loss of" not in text


def test_a_team_at_chance_reads_that_nothing_was_learned_before_anything_else() -> None:
    first, second, *_ = verdict(details("plain", is_at_chance=True), "digits")
    assert first.startswith("Nothing here is surely better than guessing: plain, the best, is right on 90% of 500 fuse images.")
    assert second.startswith("Use plain")


def fused(rows: int, names: str = "abc", metric: Metric = "nll", seconds: float = 60.0, **keys: Any) -> FusionDetails:
    """What the fusion step would say of drawn members of one cost; `seconds` is what each training was measured to take."""
    fuse, numbers = table(rows, members=len(names), **keys), np.arange(rows)
    inputs = FusionInputs(fuse, None, np.zeros(0, int), ())
    team = TeamPredictions(tuple(names), tuple("wxyz"), inputs, table(400, members=len(names), **keys), *(numbers,) * 3)
    fitted = fit_all(team, ("vote", "weighted", "cascade") if len(names) > 1 else ("vote",))
    networks = {name: 1 if name in names else len(names) for name in fitted}
    efforts = {name: Effort(float(count), float(count)) for name, count in networks.items()}
    chosen, choice = recommend(team, fitted, efforts, metric)
    rows_of = compare(team, fitted, {name: TrainingCost(seconds * (1 + i)) for i, name in enumerate(names)}, metric)
    return FusionDetails(
        recommended=chosen, choice=choice,
        best_single=best_single(team, fitted, metric), classes=list(team.classes), rows={"fit": 0, "fuse": rows, "test": 400},
        candidates={
            name: Candidate(
                **dict(row), inference_cost=seconds, multiply_adds=1e6 * networks[name], compute_cost=networks[name],
                networks=networks[name],
            )
            for name, row in rows_of.items()
        },
        diversity=Diversity(confusion={}, pairs=[], oracle=0.95, disagreement_over_error=0.5, vote_accuracy=[], verdict="x"),
        hardest=[], warnings=[], suspected=0, abstention=SETS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said", "not_said"),
    [
        (
            {"rows": 25},
            ["the best of 4 candidates that learn nothing from so few fuse images", "too few to fit it"],
            ["Use weighted", "Use cascade", "guessing"],
        ),
        ({"rows": 2000}, ["3 networks, the best of 6 candidates (", "surely beats the best single network"], ["few", "guessing"]),
        ({"rows": 2000, "names": "a"}, ["Use a: 1 network", "How sure: all candidates answer alike."], ["few", "If cost"]),
        ({"rows": 25, "names": "a"}, ["Use a: 1 network", "How sure: all candidates answer alike."], ["If cost"]),
        ({"rows": 500, "skill": (0.0, 0.0, 0.0)}, ["Nothing here is surely better than guessing"], []),
        ({"rows": 2000, "metric": "balanced_accuracy"}, ["(balanced accuracy 9", "points,"], ["nats", "loss"]),
        ({"rows": 2000, "metric": "accuracy"}, ["(accuracy 9", "points,"], ["nats", "loss"]),
    ],
)
def test_what_is_recommended_is_said_without_a_contradiction(given: dict[str, Any], said: list[str], not_said: list[str]) -> None:
    details = fused(**given)
    text = "\n".join(verdict(details, "digits"))
    assert all(part in text for part in said), text
    assert not any(part in text for part in not_said), text


def test_what_members_bring_is_said_in_points_and_money() -> None:
    brought = {
        name: Contribution(accuracy=a, accuracy_interval=(low, high), nll=0.01, nll_interval=(0.0, 0.02), money={"spot": price})
        for name, a, low, high, price in (("plain", 0.004, 0.003, 0.005, 123.4), ("adamw", 0.009, 0.007, 0.011, 0.004))
    }
    given = details("vote").model_copy(update={"contributions": brought})
    assert contributions_text(given) == (
        "What each member brings to the vote, beside the mean member alone: "
        "adamw +0.9 ± 0.2 points, for 0.004 spot; plain +0.4 ± 0.1 points, for 123.40 spot."
    )
    assert contributions_text(details("vote")) is None


def test_prediction_sets_and_doubtful_labels_are_said() -> None:
    given = details("vote").model_copy(update={"suspected": 7})
    assert abstention_text(given) == (
        "Prediction sets that hold the right class of 90% of new images have 1.20 classes on average, and 80% of them have "
        "just one. On the test rows, 91.3% of the sets hold the right class."
    )
    assert doubts_text(given) == ["7 labels are probably wrong: `conclave labels SWEEP` lists them."]
    assert doubts_text(details("vote")) == []


def test_of_a_team_at_chance_no_gain_of_more_members_is_promised() -> None:
    assert diversity_text(details("plain", is_at_chance=True)) == []
