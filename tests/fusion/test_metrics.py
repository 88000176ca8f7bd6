"""Metrics that are no mean over rows: equal to scikit-learn's, with intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score, roc_auc_score, top_k_accuracy_score

from fusion.metrics.linearized import auroc_values, f1_values
from fusion.metrics.paired import Sample, compare_losses
from fusion.predictions import softmax
from fusion.results import SHARES, Metric


def drawn(rows: int, classes: int, seed: int = 0, skill: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    labels = draw.choice(classes, rows, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return softmax(draw.normal(size=(rows, classes)) + skill * np.eye(classes)[labels]), labels


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_the_metrics_are_those_of_scikit_learn(classes: int) -> None:
    p, labels = drawn(300, classes)
    many = {"labels": np.arange(classes), "multi_class": "ovr"} if classes > 2 else {}
    assert auroc_values(p, labels).mean() == pytest.approx(roc_auc_score(labels, p if classes > 2 else p[:, 1], **many))
    assert f1_values(p, labels).mean() == pytest.approx(f1_score(labels, p.argmax(1), average="macro"))
    if classes > 5:
        expected = top_k_accuracy_score(labels, p, k=5, labels=np.arange(classes))
        assert 1 - Sample(labels).loss(p, "top5") == pytest.approx(expected)


def test_ties_count_half_and_classes_without_rows_do_not_count() -> None:
    p, labels = drawn(200, 3)
    rounded = np.round(p, 1)
    assert auroc_values(rounded, labels).mean() == pytest.approx(
        np.mean([roc_auc_score(labels == c, rounded[:, c]) for c in range(3)])
    )
    wider = np.column_stack([p, np.zeros(200)])
    assert auroc_values(wider, labels).mean() == pytest.approx(auroc_values(p, labels).mean())
    assert f1_values(wider, labels).mean() == pytest.approx(f1_values(p, labels).mean())
    assert auroc_values(p[labels == 0], labels[labels == 0]).tolist() == [1.0] * int((labels == 0).sum())


@pytest.mark.parametrize("metric", ["auroc", "macro_f1"])
def test_the_spread_of_the_values_is_that_of_the_metric(metric: Metric) -> None:
    """Over many samples of the same kind."""
    estimates, errors = [], []
    for seed in range(300):
        p, labels = drawn(150, 3, seed)
        values = Sample(labels).row_losses(p, metric)
        estimates.append(values.mean())
        errors.append(values.std() / np.sqrt(150))
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.1)


@pytest.mark.parametrize("metric", SHARES)
def test_an_interval_of_a_difference_holds_it(metric: Metric) -> None:
    """95 % for a single comparison of two candidates of equal skill, whose true difference is 0."""
    held = 0
    for seed in range(200):
        classes = 7 if metric == "top5" else 3
        p, labels = drawn(150, classes, seed)
        other = softmax(np.random.default_rng(1000 + seed).normal(size=p.shape) + np.eye(classes)[labels])
        low, high = compare_losses({"a": p, "b": other}, "b", Sample(labels), metric)["a"].interval
        held += low <= 0 <= high
    assert held >= 182, f"{held} of 200"


def test_a_better_candidate_is_better_by_every_metric() -> None:
    p, labels = drawn(400, 7, skill=2.5)
    worse, _ = drawn(400, 7, skill=0.5)
    for metric in SHARES:
        sample = Sample(labels)
        assert sample.loss(p, metric) < sample.loss(worse, metric)
        low, high = sample.interval(p, metric)
        assert low < sample.loss(p, metric) < high
        assert compare_losses({"a": worse, "b": p}, "b", sample, metric)["a"].interval[0] > 0


def test_groups_widen_the_interval() -> None:
    p, labels = drawn(200, 3)
    copied, of_copies, groups = np.repeat(p, 5, axis=0), np.repeat(labels, 5), np.repeat(np.arange(200), 5)
    for metric in ("auroc", "macro_f1"):
        once, copies = Sample(labels).interval(p, metric), Sample(of_copies, groups).interval(copied, metric)  # type: ignore[arg-type]
        assert copies == pytest.approx(once, rel=0.02)
