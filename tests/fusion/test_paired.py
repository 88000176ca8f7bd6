"""Differences of candidates on the same rows, with intervals and bounds that hold for all of them at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fusion.fitting.cross_validation import shuffled_splits
from fusion.methods.concat import Concat
from fusion.methods.weighted import Weighted
from fusion.metrics.calibration import nll
from fusion.metrics.paired import DRAWS, Sample, accuracy_gain, compare_losses, score_interval, unit_counts
from fusion.metrics.scores import accuracy_interval, mean_interval
from fusion.predictions import FusionInputs, Predictions, softmax
from fusion.selection.fitting import fit_fusion
from tests.factories import CLASSES

Array = np.ndarray


def drawn(n: int, seed: int, candidates: int = 3) -> tuple[dict[str, Array], Array]:
    """Candidates that are equally good, and of one mind on most rows."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, n)
    common = 1.5 * np.eye(CLASSES)[labels] + draw.normal(size=(n, CLASSES))
    return {f"c{i}": softmax(common + draw.normal(size=(n, CLASSES)) * 0.5) for i in range(candidates)}, labels


@pytest.mark.parametrize("counts", [(3, 1, 44), (12, 2, 75), (2, 12, 75), (0, 4, 30), (1, 0, 500)])
def test_a_score_interval_ends_where_the_score_test_rejects(counts: tuple[int, int, int]) -> None:
    """By the likelihood itself: at each end, the score statistic at the most likely proportions is the critical value."""
    lost, won, rows = counts

    def statistic(delta: float) -> float:
        def negative(q: float) -> float:
            cells = np.maximum([q + delta, q, 1 - 2 * q - delta], 1e-300)
            return -float(np.dot([lost, won, rows - lost - won], np.log(cells)))

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        q = minimize_scalar(negative, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return float((lost - won - rows * delta) / np.sqrt(rows * (2 * q + delta * (1 - delta))))

    low, high = score_interval(lost, won, rows, 1.96)
    assert (statistic(low), statistic(high)) == pytest.approx((1.96, -1.96), abs=1e-4)


def test_rows_on_which_all_agree_show_little_if_they_are_few() -> None:
    assert score_interval(0, 0, 36, 1.645)[1] == pytest.approx(1.645**2 / (36 + 1.645**2))
    assert accuracy_interval(np.ones(36))[0] == pytest.approx(36 / (36 + 1.96**2), abs=1e-4)
    assert accuracy_interval(np.ones(36))[1] == 1


@pytest.mark.parametrize("metric", ["nll", "accuracy", "balanced_accuracy"])
def test_intervals_hold_for_all_candidates_at_once(metric: str) -> None:
    """Of 200 draws of equally good candidates, about 95 in 100 have no difference beyond its interval or its bound."""
    inside, bounded = 0, 0
    for seed in range(200):
        probabilities, labels = drawn(300, seed, candidates=4)
        compared = compare_losses(probabilities, "c0", Sample(labels), metric)  # type: ignore[arg-type]
        inside += all(one.interval[0] <= 0 <= one.interval[1] for one in compared.values())
        bounded += all(one.upper >= 0 for one in compared.values())
    assert 0.91 <= inside / 200 <= 0.99
    assert 0.91 <= bounded / 200 <= 0.99


def test_losses_are_the_metrics_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

    probabilities, labels = drawn(300, 0, candidates=1)
    one, sample = probabilities["c0"], Sample(labels)
    guesses = one.argmax(1)
    assert [sample.loss(one, metric) for metric in ("nll", "accuracy", "balanced_accuracy")] == pytest.approx(
        [log_loss(labels, one), 1 - accuracy_score(labels, guesses), 1 - balanced_accuracy_score(labels, guesses)]
    )


def test_a_metric_is_computed_anew_in_each_draw() -> None:
    """Balanced accuracy of the rows drawn, whose classes have other sizes than in the sample."""
    from sklearn.metrics import balanced_accuracy_score

    probabilities, labels = drawn(60, 1, candidates=1)
    sample, guesses = Sample(labels), probabilities["c0"].argmax(1)
    counts = next(unit_counts(60))[:5]
    losses = sample.mean(sample.row_losses(probabilities["c0"], "balanced_accuracy")[None], "balanced_accuracy", counts)[:, 0]
    by_hand = [1 - balanced_accuracy_score(labels, guesses, sample_weight=row) for row in counts]
    assert losses == pytest.approx(by_hand, abs=1e-6)


def test_counts_come_in_blocks_that_fit_in_memory() -> None:
    blocks = [len(block) for block in unit_counts(20_000)]
    assert sum(blocks) == DRAWS
    assert max(blocks) * 20_000 * 4 <= 32 << 20
    assert len(blocks) > 1


@pytest.mark.parametrize("metric", ["nll", "accuracy", "balanced_accuracy"])
def test_copies_of_rows_in_a_group_make_no_interval_narrower(metric: str) -> None:
    probabilities, labels = drawn(200, 3)
    copied = {name: np.repeat(p, 5, axis=0) for name, p in probabilities.items()}
    width = {}
    for name, (given, sample) in {
        "once": (probabilities, Sample(labels, np.arange(200))),
        "copies in groups": (copied, Sample(np.repeat(labels, 5), np.repeat(np.arange(200), 5))),
        "copies": (copied, Sample(np.repeat(labels, 5))),
    }.items():
        low, high = compare_losses(given, "c0", sample, metric)["c1"].interval  # type: ignore[arg-type]
        width[name] = high - low
    assert width["copies in groups"] == pytest.approx(width["once"], rel=0.02)
    assert width["copies"] < 0.6 * width["once"]


def test_groups_widen_the_intervals_of_means_and_of_accuracies() -> None:
    values = np.random.default_rng(0).normal(size=100)
    groups = np.repeat(np.arange(100), 4)
    assert mean_interval(np.repeat(values, 4), groups) == pytest.approx(mean_interval(values))
    hits = np.repeat((values > -1).astype(float), 4)
    assert accuracy_interval(hits, groups) == pytest.approx(accuracy_interval((values > -1).astype(float)), abs=1e-6)
    probabilities, labels = drawn(200, 4)
    plain = accuracy_gain(probabilities["c1"], probabilities["c0"], Sample(labels))
    one, other = (np.repeat(probabilities[name], 5, axis=0) for name in ("c1", "c0"))
    grouped = accuracy_gain(one, other, Sample(np.repeat(labels, 5), np.repeat(np.arange(200), 5)))
    assert grouped.difference == pytest.approx(plain.difference)
    assert grouped.p == pytest.approx(plain.p, abs=0.2)


def near_copies(images: int, copies: int, seed: int) -> Predictions:
    """Each image several times, with features that are nearly the same and say nothing of its class."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(draw.integers(0, CLASSES, images), copies)
    features = np.repeat(draw.normal(size=(images, 40)), copies, axis=0) + 0.01 * draw.normal(size=(images * copies, 40))
    logits = 0.5 * np.eye(CLASSES)[labels] + np.repeat(draw.normal(size=(images, CLASSES)), copies, axis=0)
    groups = np.repeat(np.arange(images), copies)
    return Predictions(logits[None], (features.astype(np.float32),), labels, groups=groups)


def test_folds_divide_no_group() -> None:
    groups = np.random.default_rng(0).integers(0, 30, 200)
    splits = shuffled_splits(200, groups)
    assert len(splits) == 5
    assert sorted(np.concatenate([held_out for _, held_out in splits]).tolist()) == list(range(200))
    assert all(not set(groups[fitted]) & set(groups[held_out]) for fitted, held_out in splits)
    assert shuffled_splits(9, np.zeros(9, int)) == []


@pytest.mark.parametrize("has_groups", [True, False])
def test_near_copies_of_an_image_do_not_judge_the_head_that_learned_it(has_groups: bool) -> None:
    """Without the groups, a head that remembers images seems to be right on all of them."""
    fuse, new = near_copies(150, 5, 0), near_copies(150, 5, 1)
    head = (np.zeros((CLASSES, 40)), np.zeros(CLASSES))
    given = fuse if has_groups else replace(fuse, groups=None)
    fusion = fit_fusion("concat", Concat, FusionInputs(given, None, np.zeros(0, int), (head,)))
    nested, truth = nll(fusion.nested, fuse.labels), nll(fusion.predict_proba(new), new.labels)
    assert (abs(nested - truth) < 0.15) == has_groups
    if not has_groups:
        assert nested < truth - 0.5


def test_weights_are_chosen_by_folds_that_divide_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def splits(rows: int, groups: Array | None) -> list[Any]:
        seen.append(groups)
        return []

    monkeypatch.setattr("fusion.fitting.cross_validation.shuffled_splits", splits)
    fuse = near_copies(30, 3, 0)
    Weighted().fit(FusionInputs(fuse, None, np.zeros(0, int), ()))
    assert np.array_equal(seen[0], np.repeat(np.arange(30), 3))
