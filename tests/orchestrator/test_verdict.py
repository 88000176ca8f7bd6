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
from fusion.selection.networks import Effort, shares_of_networks
from fusion.selection.recommendation import best_single, recommend, why_chosen
from orchestrator.reporting.verdict import abstention_text, contributions_text, diversity_text, doubts_text, verdict
from tests.factories import table

NOTHING = LossDifference(0.0, (0.0, 0.0), 0.0)
SETS = Abstention(coverage=0.9, level=0.8, on_test=0.913, mean_size=1.2, certain=0.8)


def candidate(accuracy: float, nll: float, compute: float, training: float, gain: Gain | None = None) -> Candidate:
    scores = Scores(accuracy=accuracy, nll=nll, brier=0.1, ece=0.01)
    return Candidate(
        fuse=scores, temperature=1.0, train_seconds=60 * training, train_cost=training, test=scores, against_single=gain,
        inference_cost=1.1 * compute, multiply_adds=1e6 * compute, compute_cost=compute,
    )  # fmt: skip


def details(recommended: str, choice: dict[str, Any], why: str = "because", gain: Gain | None = None) -> FusionDetails:
    given = {"metric": "nll", "rows": 500, "is_decided": True, "is_at_chance": False, "best_score": recommended, "equal": []}
    given |= {"lost": NOTHING, "detectable": 0.012, "detectable_accuracy": 0.011, **choice}
    return FusionDetails(
        recommended=recommended, why=why, choice=Choice.model_validate(given), best_single="plain", classes=["x", "y"],
        rows={"fit": 4000, "fuse": 500, "test": 1000},
        candidates={
            "plain": candidate(0.90, 0.31, 1.0, 1.0, Gain(0.0, (0.0, 0.0), 1.0)),
            "vote": candidate(0.92, 0.25, 3.0, 3.0, gain),
            "stack": candidate(0.92, 0.249, 3.0, 15.0, gain),
        },
        diversity=Diversity(confusion={}, pairs=[], oracle=0.95, disagreement_over_error=0.5, vote_accuracy=[], verdict=""),
        hardest=[], warnings=[], suspected=0, abstention=SETS,
    )  # fmt: skip


def test_the_best_value_stands_beside_the_best_score_and_the_next_cheaper_one() -> None:
    choice = {
        "best_score": "stack",
        "lost": LossDifference(0.001, (-0.002, 0.004), 0.004),
        "next_cheaper": "plain",
        "worth": LossDifference(0.06, (0.04, 0.08), 0.02),
    }
    assert verdict(details("vote", choice, gain=Gain(0.02, (0.012, 0.028), 0.0001))) == [
        "Use vote: because.",
        "Best score: stack is better by 0.0010 nats (-0.0020 to 0.0040), which may be chance. "
        "It takes 1.00x the computing for an image, and 5.00x the training.",
        "Next cheaper: plain is worse by 0.0600 nats (0.0400 to 0.0800). "
        "It takes 0.33x the computing for an image, and 0.33x the training.",
        "On the 1,000 test rows, vote is 2.00 points more accurate than plain (+1.20 to +2.80; McNemar's p = 0.0001).",
        "Beside the mean member, vote takes 3.00x the computing for an image, and 3.00x the training.",
        "Evidence: fair. 500 fuse rows can show differences of at least 0.0120 nats, or 1.2 points.",
    ]


def test_a_gain_that_may_be_chance_is_called_so_and_a_loss_is_not_called_a_gain() -> None:
    doubtful, loss = (verdict(details("vote", {}, gain=Gain(g, (g - 0.01, g + 0.01), 0.4)))[1] for g in (0.003, -0.004))
    assert "0.30 points more accurate than plain" in doubtful
    assert doubtful.endswith("so few rows can't tell that from chance.")
    assert "0.40 points less accurate than plain" in loss


def test_a_single_member_is_not_compared_with_itself() -> None:
    lines = verdict(details("plain", {"best_score": "plain"}))
    assert not any("test rows" in line for line in lines)
    assert lines[0] == "Use plain: because."


def test_few_rows_are_weak_evidence_even_where_they_decide() -> None:
    lines = verdict(details("plain", {"rows": 26, "detectable_accuracy": 0.004}))
    assert lines[-1].startswith("Evidence: weak. 26 fuse rows")


def test_where_all_candidates_are_the_same_there_is_no_evidence_to_grade() -> None:
    """Of a team of one member, all fusions are that member."""
    lines = verdict(details("plain", {"detectable": 0.0, "detectable_accuracy": 0.0}))
    assert lines[-1] == "Evidence: there is nothing to compare. All candidates answer the fuse rows alike."


def test_with_too_few_rows_there_is_no_evidence_and_what_helps_is_said() -> None:
    lines = verdict(details("vote", {"is_decided": False, "rows": 25, "detectable_accuracy": 0.24}))
    assert lines[-1] == (
        "Evidence: none. So few rows can't show differences below 24 points. "
        "Bring more images, or set more of them apart as fuse rows."
    )


def test_a_cheaper_candidate_that_scores_better_is_not_called_worse() -> None:
    """As where the rows are too few to choose by, and the vote is taken."""
    choice = {
        "is_decided": False,
        "best_score": "stack",
        "next_cheaper": "plain",
        "worth": LossDifference(-0.02, (-0.09, 0.05), 0.1),
    }
    assert any(
        line.startswith("Next cheaper: plain is better by 0.0200 nats (-0.0500 to 0.0900), which may be chance.")
        for line in verdict(details("vote", choice))
    )


def test_a_team_at_chance_is_told_that_nothing_was_learned_before_anything_else() -> None:
    first, second, *_ = verdict(details("plain", {"is_at_chance": True}))
    assert first.startswith("Nothing here is surely better than guessing: plain, the best, is right on 90% of the 500 fuse rows.")
    assert second.startswith("Use plain")


def test_differences_in_accuracy_are_points() -> None:
    choice = {"metric": "accuracy", "best_score": "stack", "lost": LossDifference(0.011, (-0.002, 0.02), 0.02)}
    lines = verdict(details("vote", choice))
    assert lines[1].startswith("Best score: stack is better by 1.10 points (-0.20 to 2.00), which may be chance.")
    assert "nats" not in " ".join(lines)


def fused(rows: int, names: str = "abc", metric: Metric = "nll", seconds: float = 60.0, **keys: Any) -> FusionDetails:
    """What the fusion step would say of drawn members of one cost; `seconds` is what each training was measured to take."""
    fuse, numbers = table(rows, members=len(names), **keys), np.arange(rows)
    inputs = FusionInputs(fuse, None, np.zeros(0, int), ())
    team = TeamPredictions(tuple(names), tuple("wxyz"), inputs, table(400, members=len(names), **keys), *(numbers,) * 3)
    fitted = fit_all(team, ("vote", "weighted", "cascade") if len(names) > 1 else ("vote",))
    shares = {name: sum(shares_of_networks(fusion, team, 1 if name in names else len(names))) for name, fusion in fitted.items()}
    efforts = {name: Effort(shares[name], float(len(names) if name not in names else 1)) for name in fitted}
    chosen, choice = recommend(team, fitted, efforts, metric)
    rows_of = compare(team, fitted, {name: TrainingCost(seconds * (1 + i)) for i, name in enumerate(names)}, metric)
    return FusionDetails(
        recommended=chosen, why=why_chosen(chosen, choice, efforts, team.names), choice=choice,
        best_single=best_single(team, fitted, metric), classes=list(team.classes), rows={"fit": 0, "fuse": rows, "test": 400},
        candidates={
            name: Candidate(**dict(row), inference_cost=seconds, multiply_adds=1e6 * shares[name], compute_cost=shares[name])
            for name, row in rows_of.items()
        },
        diversity=Diversity(confusion={}, pairs=[], oracle=0.95, disagreement_over_error=0.5, vote_accuracy=[], verdict="x"),
        hardest=[], warnings=[], suspected=0, abstention=SETS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said", "not_said"),
    [
        ({"rows": 25}, ["are too few to choose by, and vote learns nothing", "Evidence: none."], ["surely worse"]),
        (
            {"rows": 2000},
            ["Use cascade: it has the best NLL on the 2,000 fuse rows", "Evidence: strong. 2,000"],
            ["too few", "guessing"],
        ),
        ({"rows": 2000, "names": "a"}, ["Use a: it is the only member", "nothing to compare"], ["too few", "Next"]),
        ({"rows": 25, "names": "a"}, ["Use a: it is the only member", "nothing to compare"], ["too few", "Next"]),
        ({"rows": 500, "skill": (0.0, 0.0, 0.0)}, ["Nothing here is surely better than guessing"], []),
        ({"rows": 2000, "metric": "balanced_accuracy"}, ["best balanced accuracy on", "a is worse by 2.90 points"], ["nats"]),
        ({"rows": 2000, "metric": "accuracy"}, ["best accuracy on", "a is worse by 2.90 points"], ["nats"]),
    ],
)
def test_what_is_recommended_is_said_without_a_contradiction(given: dict[str, Any], said: list[str], not_said: list[str]) -> None:
    details = fused(**given)
    lines = verdict(details)
    text = "\n".join(lines)
    assert all(part in text for part in said), text
    assert not any(part in text for part in not_said), text
    assert details.choice is not None
    cheaper = details.choice.next_cheaper
    if "what is cheaper is surely worse." in text:
        assert details.choice.worth is not None
        assert details.choice.worth.interval[0] > 0, text
        work = {name: one.multiply_adds for name, one in details.candidates.items()}
        assert not any(work[name] < work[details.recommended] for name in details.choice.equal), text
    assert cheaper != details.recommended


def test_what_members_bring_is_said_in_points_and_money() -> None:
    brought = {
        name: Contribution(accuracy=a, accuracy_interval=(low, high), nll=0.01, nll_interval=(0.0, 0.02), money={"spot": price})
        for name, a, low, high, price in (("plain", 0.004, 0.003, 0.005, 123.4), ("adamw", 0.009, 0.007, 0.011, 0.004))
    }
    given = details("vote", {}).model_copy(update={"contributions": brought})
    assert contributions_text(given) == (
        "What each member brings to the vote, beside the mean member alone: "
        "adamw +0.9 ± 0.2 points, for 0.004 spot; plain +0.4 ± 0.1 points, for 123.40 spot."
    )
    assert contributions_text(details("vote", {})) is None


def test_prediction_sets_and_doubtful_labels_are_said() -> None:
    given = details("vote", {}).model_copy(update={"suspected": 7})
    assert abstention_text(given) == (
        "Prediction sets that hold the right class of 90% of new images have 1.20 classes on average, and 80% of them have "
        "just one. On the test rows, 91.3% of the sets hold the right class."
    )
    assert doubts_text(given) == ["7 labels are probably wrong: `conclave labels SWEEP` lists them."]
    assert doubts_text(details("vote", {})) == []


def test_of_a_team_at_chance_no_gain_of_more_members_is_promised() -> None:
    assert diversity_text(details("plain", {"is_at_chance": True})) == []


def test_a_difference_that_a_test_does_not_confirm_is_doubted_and_none_is_no_gain() -> None:
    """Five rows won and none lost: the interval leaves zero out, and McNemar's exact p is 0.06."""
    [line] = [one for one in verdict(details("vote", {}, gain=Gain(0.014, (0.003, 0.028), 0.062))) if "test rows" in one]
    assert line.endswith("so few rows can't tell that from chance.")
    [line] = [one for one in verdict(details("vote", {}, gain=Gain(0.0, (-0.01, 0.01), 1.0))) if "test rows" in one]
    assert "vote is right as often as plain" in line


def test_one_candidate_is_compared_once() -> None:
    """As where the rows are too few to choose by, and what is cheaper than the vote has the best score."""
    worth = LossDifference(-0.06, (-0.1, -0.02), 0.1)
    choice = {"is_decided": False, "best_score": "plain", "lost": LossDifference(0.06, (0.02, 0.1), 0.1)}
    lines = verdict(details("vote", {**choice, "next_cheaper": "plain", "worth": worth}))
    assert [line.partition(":")[0] for line in lines if "plain is" in line] == ["Best score"]
    assert "as far as so few rows tell" in "\n".join(lines)
