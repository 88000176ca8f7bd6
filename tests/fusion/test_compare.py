"""Costs and compute-matched votes: hand-made cases with known answers."""

import numpy as np
import pytest

from fusion.metrics.scores import scores
from fusion.predictions import FusionInputs, Predictions, TeamPredictions, softmax
from fusion.selection.compare import compare
from fusion.selection.costs import TrainingCost, compute_matched_vote, paid_for
from fusion.selection.fitting import fit_all
from tests.factories import CLASSES, table

NAMES = ("a", "b")
SECONDS = {"a": TrainingCost(100.0, (60.0, 60.0)), "b": TrainingCost(300.0, (200.0, 200.0))}


@pytest.fixture(scope="module")
def gathered() -> TeamPredictions:
    def with_folds(n: int, seed: int) -> Predictions:
        many = table(n, members=6, skill=(0.8,) * 6, seed=seed)
        return Predictions(many.logits[:2], (), many.labels, many.logits[2:].reshape(2, 2, n, CLASSES))

    fuse, test = with_folds(300, 1), with_folds(2000, 2)
    oof = table(800, members=2, skill=(0.8, 0.8), seed=3)
    rows = np.arange(10)
    return TeamPredictions(NAMES, tuple("wxyz"), FusionInputs(fuse, oof, np.arange(800) % 2, (), (0, 1)), test, rows, rows, rows)


def test_what_was_paid_for(gathered: TeamPredictions) -> None:
    fitted = fit_all(gathered, ("vote", "stack"))
    assert paid_for("a", fitted["a"], gathered, SECONDS) == 100
    assert paid_for("vote", fitted["vote"], gathered, SECONDS) == 400
    assert paid_for("stack", fitted["stack"], gathered, SECONDS) == 920


def test_a_stack_is_compared_with_the_vote_of_all_networks_that_it_paid_for(gathered: TeamPredictions) -> None:
    fitted = fit_all(gathered, ("vote", "stack"))
    row = compute_matched_vote(fitted["stack"], 920, gathered, SECONDS)
    assert row is not None
    assert gathered.test.folds is not None
    every = np.concatenate([gathered.test.logits, gathered.test.folds.reshape(4, -1, CLASSES)])
    assert row.networks == 6
    assert row.test.accuracy == scores(softmax(every).mean(0), gathered.test.labels).accuracy
    assert row.test.accuracy > scores(fitted["vote"].predict_proba(gathered.test), gathered.test.labels).accuracy


@pytest.mark.parametrize(("paid", "networks"), [(400, 2), (459, 2), (460, 3), (660, 4), (719, 4), (720, 5), (920, 6)])
def test_as_many_networks_as_the_seconds_trained(paid: float, networks: int, gathered: TeamPredictions) -> None:
    vote = fit_all(gathered, ("vote",))["vote"]
    row = compute_matched_vote(vote, paid, gathered, SECONDS)
    assert row is not None


def test_fold_fits_that_make_the_vote_worse_are_left_out_of_it(gathered: TeamPredictions) -> None:
    """Fold fits that know nothing, as of a hundredth of the epochs: the vote to beat is that of the full fits."""
    from dataclasses import replace

    draw = np.random.default_rng(0)
    fuse, test = (
        replace(t, folds=2 * draw.normal(size=t.folds.shape) if t.folds is not None else None)
        for t in (gathered.inputs.fuse, gathered.test)
    )
    poor = replace(gathered, inputs=replace(gathered.inputs, fuse=fuse), test=test)
    row = compute_matched_vote(fit_all(poor, ("vote",))["vote"], 920, poor, SECONDS)
    assert row is not None
    assert row.networks == 2


def test_what_paid_for_no_network_has_no_vote_to_beat(gathered: TeamPredictions) -> None:
    assert compute_matched_vote(fit_all(gathered, ("vote",))["vote"], 99, gathered, SECONDS) is None


def test_without_the_fold_fits_outputs_there_is_no_such_row(gathered: TeamPredictions) -> None:
    from dataclasses import replace

    bare = replace(gathered, inputs=replace(gathered.inputs, fuse=replace(gathered.inputs.fuse, folds=None)))
    assert compute_matched_vote(fit_all(bare, ("vote",))["vote"], 920, bare, SECONDS) is None


def test_snapshots_of_one_training_are_paid_for_once(gathered: TeamPredictions) -> None:
    """a and b are two cycles of one training of 100 + 100 seconds: both together cost what b costs."""
    cycles = {"a": TrainingCost(100.0, training="x"), "b": TrainingCost(200.0, training="x")}
    rows = compare(gathered, fit_all(gathered, ("vote",)), cycles)
    assert [rows[n].train_seconds for n in ("a", "b", "vote")] == [100, 200, 200]
    assert [rows[n].train_cost for n in ("a", "b", "vote")] == [0.5, 1.0, 1.0], "one whole training is the unit"
    assert rows["vote"].matched.networks == 2


def test_a_snapshot_alone_paid_for_the_cycles_before_it() -> None:
    """Two cycles of 100 s, fold fits of two times 50 s a cycle; the second cycle alone is fused."""
    one = table(300, members=2)
    fuse = Predictions(one.logits[:1], (), one.labels, np.repeat(one.logits[:1, None], 2, 1))
    given = TeamPredictions(
        ("b",), tuple("wxyz"), FusionInputs(fuse, fuse, np.arange(300) % 2, (), (0,)), fuse, *[np.arange(10)] * 3
    )
    seconds = {"b": TrainingCost(200.0, (100.0, 100.0), "x")}
    fitted = fit_all(given, ("vote", "stack"))
    assert paid_for("stack", fitted["stack"], given, seconds) == 400
    row = compute_matched_vote(fitted["vote"], 200, given, seconds)
    assert row is not None
    assert row.networks == 1


def test_costs_are_multiples_of_the_mean_member_and_tests_are_adjusted(gathered: TeamPredictions) -> None:
    fitted = fit_all(gathered, ("vote", "vote_logits", "stack"))
    rows = compare(gathered, fitted, SECONDS)
    assert [rows[n].train_cost for n in ("a", "b", "vote", "stack")] == [0.5, 1.5, 2.0, 4.6]
    for name in ("vote", "vote_logits", "stack"):
        assert rows[name].against_single.p <= rows[name].holm_p <= min(1, 3 * rows[name].against_single.p)
    single = min(("a", "b"), key=lambda n: rows[n].fuse.nll)
    points = 100 * (rows["vote"].test.accuracy - rows[single].test.accuracy)
    assert rows["vote"].cost_per_point == pytest.approx((2.0 - rows[single].train_cost) / points)
    assert rows[single].cost_per_point is None
