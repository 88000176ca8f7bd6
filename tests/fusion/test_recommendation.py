"""Which candidate is recommended: the cheapest that is shown to be as good as the best, within the tolerance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.methods.vote import Vote
from fusion.metrics.scores import detectable, is_at_chance, row_losses
from fusion.predictions import FusionInputs, Predictions, TeamPredictions, softmax
from fusion.selection.fitting import FittedFusion, fit_all
from fusion.selection.networks import Effort
from fusion.selection.recommendation import MIN_GROUPS, MIN_ROWS, recommend
from tests.factories import CLASSES, table

ROWS = 1000


def team(n: int = ROWS) -> TeamPredictions:
    none, rows = Predictions(np.zeros((3, 0, CLASSES)), (), np.zeros(0, int)), np.arange(1)
    return TeamPredictions(
        ("a", "b", "c"), tuple("wxyz"), FusionInputs(table(n), None, np.zeros(0, int), ()), none, rows, rows, rows
    )


def candidates(given: TeamPredictions, **right: float) -> dict[str, FittedFusion]:
    """Candidates that are right with these shares of the rows, each on rows of its own, and equally sure of all."""
    labels, found = given.inputs.fuse.labels, {}
    for number, (name, share) in enumerate(right.items()):
        wrong = np.random.default_rng(number).random(len(labels)) >= share
        found[name] = FittedFusion(name, Vote(), 1.0, softmax(3.0 * np.eye(CLASSES)[(labels + wrong) % CLASSES]))
    return found


ALONE, THREE = Effort(1.0, 1.0), Effort(3.0, 3.0)
COSTS = {"a": ALONE, "b": ALONE, "c": ALONE, "vote": THREE, "stack": Effort(3.0, 15.0)}


def right_on(given: TeamPredictions, rows: np.ndarray) -> np.ndarray:
    """Probabilities that name the label on these rows, and another class elsewhere, equally sure everywhere."""
    labels, is_right = given.inputs.fuse.labels, np.zeros(len(given.inputs.fuse.labels), bool)
    is_right[rows] = True
    return softmax(3.0 * np.eye(CLASSES)[(labels + ~is_right) % CLASSES])


def test_the_cheapest_that_is_shown_to_be_as_good_is_recommended() -> None:
    given = team()
    fitted = candidates(given, a=0.7, b=0.7, c=0.7, vote=0.9, stack=0.9)
    guesses = fitted["vote"].nested.argmax(1)
    fitted["stack"].nested = softmax(3.1 * np.eye(CLASSES)[guesses])  # a little surer of the same answers
    fitted["vote"].nested = softmax(3.0 * np.eye(CLASSES)[guesses])
    chosen, choice = recommend(given, fitted, COSTS)
    assert (chosen, choice.best_score) == ("vote", "stack")
    assert 0 < choice.behind_best["vote"].difference < choice.behind_best["vote"].upper <= choice.tolerance
    assert [name for name in choice.cheaper if name not in "abc"] == []
    assert choice.differences["stack"].difference < 0 < choice.differences["a"].interval[0]


def test_what_is_not_shown_to_be_as_good_is_not_recommended() -> None:
    """A vote that may be as good as the stack, and may be worse by more than the tolerance: nothing is shown."""
    given = team(300)
    rows = np.arange(300)
    fitted = candidates(given, a=0.7, b=0.7, c=0.7, vote=0.9, stack=0.9)
    fitted["stack"].nested, fitted["vote"].nested = right_on(given, rows >= 30), right_on(given, (rows >= 58) | (rows < 27))
    chosen, choice = recommend(given, fitted, COSTS)
    assert (chosen, choice.best_score) == ("stack", "stack")
    behind = choice.behind_best["vote"]
    assert choice.losses["vote"] - choice.losses["stack"] == pytest.approx(behind.difference)
    assert behind.upper > choice.tolerance > 0
    assert behind.interval[0] < 0, "not surely worse either"


def test_the_tolerance_decides() -> None:
    given = team()
    rows = np.arange(ROWS)
    fitted = candidates(given, a=0.7, b=0.7, c=0.7, vote=0.9, stack=0.9)
    fitted["stack"].nested, fitted["vote"].nested = right_on(given, rows >= 100), right_on(given, rows >= 110)
    accuracies = {t: recommend(given, fitted, COSTS, "accuracy", t)[0] for t in (0.0, 0.012, 0.03)}
    assert accuracies == {0.0: "stack", 0.012: "stack", 0.03: "vote"}
    assert {t: recommend(given, fitted, COSTS, "nll", t)[0] for t in (0.01, 0.1)} == {0.01: "stack", 0.1: "vote"}


def test_36_rows_on_which_all_agree_show_nothing_in_accuracy() -> None:
    """The same answers on few rows: an interval of width zero would take the cheapest."""
    for count, expected in ((200, "stack"), (2000, "a")):
        given = team(count)
        fitted = candidates(given, a=0.9, b=0.5, c=0.5, vote=0.8, stack=0.9)
        better = fitted["a"].nested.copy()
        mended = np.flatnonzero(better.argmax(1) != given.inputs.fuse.labels)[:1]
        better[mended] = softmax(3.0 * np.eye(CLASSES)[given.inputs.fuse.labels[mended]])
        fitted["stack"].nested = better
        assert recommend(given, fitted, COSTS, "accuracy")[0] == expected


def test_a_dominated_candidate_is_never_recommended() -> None:
    """The stack costs more than the vote, scores worse, and would be shown to be good enough."""
    given = team()
    rows = np.arange(ROWS)
    fitted = candidates(given, a=0.5, b=0.5, c=0.5, vote=0.9, stack=0.9, weighted=0.9)
    fitted["weighted"].nested, fitted["vote"].nested = right_on(given, rows >= 99), right_on(given, rows >= 100)
    fitted["stack"].nested = right_on(given, rows >= 101)
    costs = {**dict.fromkeys("abc", ALONE), "stack": Effort(2.0, 9.0), "vote": Effort(2.0, 3.0), "weighted": THREE}
    chosen, choice = recommend(given, fitted, costs, tolerance=0.1)
    assert (chosen, choice.best_score) == ("vote", "weighted")
    assert choice.behind_best["stack"].upper <= 0.1


def test_members_of_equal_inference_are_told_apart_by_their_training() -> None:
    given = team()
    fitted = candidates(given, a=0.8, b=0.8, c=0.5, vote=0.8)
    for name in ("b", "vote"):
        fitted[name].nested = fitted["a"].nested
    costs = {"a": Effort(1.0, 2.0), "b": Effort(1.0, 1.0), "c": ALONE, "vote": THREE}
    assert recommend(given, fitted, costs)[0] == "b"


@pytest.mark.parametrize("unit", ["rows", "groups"])
def test_with_few_rows_or_groups_a_fusion_that_learns_from_them_does_not_compete(unit: str) -> None:
    few = team(MIN_ROWS - 1 if unit == "rows" else ROWS)
    groups = None if unit == "rows" else np.arange(ROWS) % (MIN_GROUPS - 1)
    few = replace(few, inputs=replace(few.inputs, fuse=replace(few.inputs.fuse, groups=groups)))
    chosen, choice = recommend(few, candidates(few, a=0.9, b=0.5, c=0.5, vote=0.92, stack=0.99), COSTS)
    assert (chosen, choice.has_few_rows, choice.best_score) == ("vote", True, "vote")
    assert "stack" not in choice.competing
    assert choice.differences["stack"].difference < 0
    chosen, _ = recommend(few, candidates(few, a=0.97, b=0.3, c=0.3, vote=0.4, stack=0.9), COSTS)
    assert chosen == "a", "a member that is better than the vote is recommended"


def test_near_copies_count_as_one_row() -> None:
    """Each image five times: a difference on 1,000 rows is one on 200 groups, and shows less."""
    given, rows = team(ROWS), np.arange(ROWS)
    labels, uppers = np.repeat(np.arange(ROWS // 5) % CLASSES, 5), []
    for groups in (None, rows // 5):
        fuse = replace(given.inputs.fuse, labels=labels, groups=groups)
        repeated = replace(given, inputs=replace(given.inputs, fuse=fuse))
        fitted = candidates(repeated, a=0.9, b=0.5, c=0.5, stack=0.9)
        fitted["a"].nested, fitted["stack"].nested = (right_on(repeated, rows % 50 >= wrong) for wrong in (20, 5))
        _, choice = recommend(repeated, fitted, {name: COSTS[name] for name in fitted})
        uppers.append(choice.behind_best["a"].upper - choice.behind_best["a"].difference)
    assert uppers[1] == pytest.approx(5**0.5 * uppers[0], rel=0.2)


def test_the_rows_that_would_show_it_are_counted() -> None:
    """By as many rows more, of the same kind, the cheaper candidate is shown to be good enough."""
    chosen, needed = {}, 0
    for times in (1, 6):
        given = team(200)
        logits = np.tile(given.inputs.fuse.logits, (1, times, 1))
        fuse = Predictions(logits, (), np.tile(given.inputs.fuse.labels, times))
        many = replace(given, inputs=replace(given.inputs, fuse=fuse))
        rows = np.tile(np.arange(200), times)
        fitted = candidates(many, a=0.7, b=0.7, c=0.7, vote=0.9, stack=0.9)
        fitted["stack"].nested, fitted["vote"].nested = right_on(many, rows >= 20), right_on(many, rows >= 21)
        chosen[times], choice = recommend(many, fitted, COSTS, tolerance=0.05)
        needed = choice.rows_needed.get("vote", needed)
    assert chosen == {1: "stack", 6: "vote"}
    assert 200 < needed <= 6 * 200


def test_a_team_of_one_member_gets_that_member() -> None:
    alone = team(25)
    alone = replace(alone, names=("a",))
    fitted = candidates(alone, a=0.9, vote=0.9, cascade=0.9)
    for name in ("vote", "cascade"):
        fitted[name].nested = fitted["a"].nested
    chosen, _ = recommend(alone, fitted, dict.fromkeys(fitted, ALONE))
    assert chosen == "a"


@pytest.mark.parametrize(("metric", "best"), [("accuracy", "a"), ("balanced_accuracy", "b")])
def test_the_team_s_metric_decides(metric: str, best: str) -> None:
    """Nine rows of ten are of one class: a says that class alone, b is better on all others."""
    given = team()
    labels = np.where(np.arange(ROWS) % 10 > 0, 0, 1 + np.arange(ROWS) // 10 % 3)
    given = TeamPredictions(
        given.names, given.classes, FusionInputs(Predictions(given.inputs.fuse.logits, (), labels), None, labels, ()),
        given.test, *(given.fit_rows,) * 3,
    )  # fmt: skip
    fitted = candidates(given, a=1.0, b=1.0, c=0.0)
    fitted["a"].nested = softmax(3.0 * np.eye(CLASSES)[np.zeros(ROWS, int)])
    wrong = (labels == 0) & (np.random.default_rng(0).random(ROWS) < 0.3)
    fitted["b"].nested = softmax(3.0 * np.eye(CLASSES)[(labels + wrong) % CLASSES])
    assert recommend(given, fitted, dict.fromkeys(fitted, ALONE), metric)[0] == best  # type: ignore[arg-type]


def test_losses_of_rows_have_the_metrics_as_their_means() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

    one = table(300)
    probabilities = softmax(one.logits[0])
    guesses = probabilities.argmax(1)
    means = [row_losses(probabilities, one.labels, m).mean() for m in ("nll", "accuracy", "balanced_accuracy")]
    assert means == pytest.approx(
        [
            log_loss(one.labels, probabilities),
            1 - accuracy_score(one.labels, guesses),
            1 - balanced_accuracy_score(one.labels, guesses),
        ]
    )


def test_guessing_is_at_chance_and_a_little_knowledge_is_not() -> None:
    labels = np.arange(ROWS) % CLASSES
    guesses = np.random.default_rng(0).random((ROWS, CLASSES))
    assert is_at_chance(softmax(guesses), labels)
    assert not is_at_chance(softmax(guesses + 0.2 * np.eye(CLASSES)[labels]), labels)
    assert is_at_chance(np.eye(CLASSES)[np.zeros(ROWS, int)], np.zeros(ROWS, int)), "where there is one class, nothing is learned"


def test_near_copies_of_an_image_are_one_guess() -> None:
    """Right on 8 of 12 subjects with 50 images each: 67 % of 600 rows, and nothing by 12 coins."""
    labels, groups = np.arange(600) // 50 % 2, np.arange(600) // 50
    guess = np.where(groups < 8, labels, 1 - labels)
    probabilities = 0.45 + 0.1 * np.eye(2)[guess]
    assert not is_at_chance(probabilities, labels)
    assert is_at_chance(probabilities, labels, groups=groups)
    assert not is_at_chance(0.1 + 0.8 * np.eye(2)[labels], labels, groups=groups), "right on all twelve"
    other = np.eye(2)[np.where(groups < 6, labels, 1 - labels)]
    by_rows, by_groups = detectable(probabilities, other, labels), detectable(probabilities, other, labels, groups)
    assert by_groups == pytest.approx(by_rows * np.sqrt(50))


def test_who_knows_a_rare_class_is_not_at_chance() -> None:
    """One row in ten is of the rare class: naming the other one is right as often as a member that finds most of them."""
    draw = np.random.default_rng(0)
    labels = (np.arange(ROWS) % 10 == 0).astype(int)
    rare = np.where(labels == 1, draw.random(ROWS) < 0.9, draw.random(ROWS) < 0.12).astype(float)
    guesses = np.stack([1 - rare, rare], 1) * 0.2 + 0.4
    assert (guesses.argmax(1) == labels).mean() < 0.9
    assert not is_at_chance(guesses, labels)
    sure = np.where(labels == 1, 0.35, 0.05) + draw.normal(0, 0.01, ROWS)
    assert not is_at_chance(np.stack([1 - sure, sure], 1), labels), "it names one class, and knows how sure to be"


def test_independent_members_are_voted() -> None:
    given = team(2000)
    fitted = fit_all(given, ("vote", "weighted"))
    costs = {**COSTS, "weighted": THREE}
    chosen, choice = recommend(given, fitted, {name: costs[name] for name in fitted})
    assert (chosen, choice.cheaper[-1]) == ("vote", "a")


def test_a_rare_class_that_was_guessed_by_luck_is_no_knowledge() -> None:
    """One rare row that is guessed right has no spread, and would seem to be surely known."""
    found = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        labels = np.zeros(60, int)
        labels[0] = 1
        rare = np.where(draw.random(60) < 0.3, 0.6, 0.4)
        found += not is_at_chance(np.stack([1 - rare, rare], 1), labels)
    assert found <= 8
