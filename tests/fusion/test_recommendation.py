"""Which candidate is recommended, and why: the cheapest that is not surely worse than the best, or the vote by too few rows."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.methods.cascade import Cascade
from fusion.methods.vote import Vote
from fusion.metrics.scores import is_at_chance, row_losses
from fusion.predictions import FusionInputs, Predictions, TeamPredictions, softmax
from fusion.results import FEWEST_ROWS
from fusion.selection.fitting import FittedFusion, fit_all
from fusion.selection.networks import CandidateNetworks, Effort, shares_of_networks
from fusion.selection.recommendation import best_single, recommend, why_chosen
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


def test_the_cheapest_of_those_that_are_not_surely_worse_is_taken() -> None:
    given = team()
    fitted = candidates(given, a=0.7, b=0.7, c=0.7, vote=0.9, stack=0.9)
    labels, better = given.inputs.fuse.labels, fitted["vote"].nested.copy()
    mended = np.flatnonzero(better.argmax(1) != labels)[:3]
    better[mended] = softmax(3.0 * np.eye(CLASSES)[labels[mended]])
    fitted["stack"].nested = better
    chosen, choice = recommend(given, fitted, COSTS)
    assert (chosen, choice.best_score, choice.equal) == ("vote", "stack", ["vote", "stack"])
    single = min("abc", key=lambda name: row_losses(fitted[name].nested, labels).mean())
    assert choice.next_cheaper == single, "the best of those that cost less"
    assert choice.worth is not None
    assert choice.worth.interval[0] > 0
    assert choice.lost.interval[0] <= 0 < choice.lost.difference
    assert why_chosen(chosen, choice, COSTS, given.names) == (
        "it is the cheapest candidate that is not surely worse than stack, which has the best NLL on the 1,000 fuse rows"
    )


def test_a_dearer_one_is_taken_where_it_is_surely_better() -> None:
    given = team()
    chosen, choice = recommend(given, candidates(given, a=0.5, b=0.5, c=0.5, vote=0.7, stack=0.9), COSTS)
    assert (chosen, choice.best_score, choice.next_cheaper) == ("stack", "stack", "vote")
    assert choice.lost.difference == 0


def test_a_single_member_is_taken_where_no_fusion_is_surely_better() -> None:
    given = team()
    fitted = candidates(given, a=0.9, b=0.5, c=0.5, vote=0.9)
    fitted["vote"].nested = fitted["a"].nested
    chosen, choice = recommend(given, fitted, {name: COSTS[name] for name in fitted})
    assert (chosen, choice.equal, choice.next_cheaper) == ("a", ["a", "vote"], None)
    assert best_single(given, fitted) == "a"


def test_members_of_equal_inference_are_told_apart_by_their_training() -> None:
    given = team()
    fitted = candidates(given, a=0.8, b=0.8, c=0.5, vote=0.8)
    for name in ("b", "vote"):
        fitted[name].nested = fitted["a"].nested
    costs = {"a": Effort(1.0, 2.0), "b": Effort(1.0, 1.0), "c": ALONE, "vote": THREE}
    assert recommend(given, fitted, costs)[0] == "b"


def test_with_too_few_rows_nothing_is_chosen_and_the_vote_is_taken() -> None:
    few = team(FEWEST_ROWS - 1)
    chosen, choice = recommend(few, candidates(few, a=0.9, b=0.5, c=0.5, vote=0.87, stack=0.95), COSTS)
    assert (chosen, choice.is_decided, choice.best_score) == ("vote", False, "stack")
    assert "too few to choose by" in why_chosen(chosen, choice, COSTS, few.names)
    without = candidates(few, a=0.9, b=0.5, c=0.5, stack=0.91)
    costs = {name: COSTS[name] for name in without}
    chosen, choice = recommend(few, without, costs)
    assert chosen == "a", "of the others none learns nothing, and what is dearer is not surely better"
    assert "learns nothing" not in why_chosen(chosen, choice, costs, few.names)


def test_the_vote_is_not_taken_where_even_few_rows_show_that_it_is_worse() -> None:
    """As where one member learned and the others guess."""
    few = team(26)
    fitted = candidates(few, a=0.97, b=0.3, c=0.3, vote=0.4, stack=0.9)
    fitted["stack"].nested = fitted["a"].nested  # as the weights of one member alone: equal on every row
    chosen, choice = recommend(few, fitted, {name: COSTS[name] for name in fitted})
    assert (chosen, choice.is_decided) == ("a", True)
    assert choice.detectable > 0, "the vote, which is surely worse, says what so few rows can show"
    assert why_chosen(chosen, choice, COSTS, few.names).startswith("it has the best NLL on the 26 fuse rows")


def test_a_team_of_one_member_gets_that_member_and_no_reason_that_is_none() -> None:
    alone = team(25)
    alone = TeamPredictions(("a",), *list(vars(alone).values())[1:])
    fitted = candidates(alone, a=0.9, vote=0.9, cascade=0.9)
    for name in ("vote", "cascade"):
        fitted[name].nested = fitted["a"].nested
    costs = dict.fromkeys(fitted, ALONE)
    chosen, choice = recommend(alone, fitted, costs)
    assert chosen == "a"
    assert why_chosen(chosen, choice, costs, alone.names) == "it is the only member, and there is nothing to combine"


def test_what_costs_no_less_than_a_better_one_is_never_taken() -> None:
    """The stack differs from the best on so many rows that it is not surely worse, though a cheaper one scores better."""
    given = team()
    labels, rows = given.inputs.fuse.labels, np.arange(ROWS)
    fitted = candidates(given, a=0.5, b=0.5, c=0.5, weighted=0.9, cascade=0.9, stack=0.9)

    def wrong_on(wrong: object) -> np.ndarray:
        return softmax(3.0 * np.eye(CLASSES)[(labels + np.asarray(wrong, int)) % CLASSES])

    fitted["weighted"].nested = wrong_on(rows < 200)
    fitted["cascade"].nested = wrong_on(rows < 210)  # surely worse than the best, because wherever it differs it is wrong
    fitted["stack"].nested = wrong_on((rows >= 300) & (rows < 515))  # worse still, and not surely: it differs on 415 rows
    costs = {"a": ALONE, "b": ALONE, "c": ALONE, "cascade": Effort(1.5, 3.0), "stack": Effort(2.0, 3.0), "weighted": THREE}
    chosen, choice = recommend(given, fitted, costs)
    assert "stack" in choice.equal
    assert "cascade" not in choice.equal
    assert (chosen, choice.next_cheaper) == ("weighted", "cascade")
    assert why_chosen(chosen, choice, costs, given.names).endswith("is surely worse, or worse than something cheaper still")


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
    assert (chosen, choice.best_score, choice.next_cheaper) == ("vote", "vote", "a"), "weighted learns its weights from the rows"


def test_a_cascade_is_paid_for_by_the_rows_that_ask() -> None:
    given = team(2000)
    fusion = fit_all(given, ("cascade",))["cascade"]
    assert isinstance(fusion.method, Cascade)
    counts = fusion.method.count_networks(given.inputs.fuse)
    networks: CandidateNetworks[int] = CandidateNetworks([1, 10, 100])
    asked = shares_of_networks(fusion, given, 3)
    assert asked[0] == 1
    assert sum(asked) == pytest.approx(counts.mean())
    assert list(asked) == sorted(asked, reverse=True)
    assert len(networks.used(fusion)) == 3


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
