"""Without a *fuse* part, candidates are judged on the folds' predictions, and nothing sees the rows that it is judged by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.fitting.cross_validation import splits_of
from fusion.interface import FUSIONS, FusionMethod
from fusion.methods.concat import Concat
from fusion.methods.stack import Stack
from fusion.methods.stack_bag import StackBag
from fusion.methods.vote import Vote
from fusion.methods.weighted import Weighted
from fusion.metrics.calibration import nll
from fusion.predictions import FusionInputs, Predictions, _merged, softmax
from fusion.selection.fitting import fit_fusion

ROWS, CLASSES, FEATURES = 200, 4, 300


def memorised(rows: int = ROWS) -> FusionInputs:
    """Two members whose full trainings know every label by heart, while their fold trainings know nothing."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, rows)
    features, heads = [], []
    for _ in range(2):
        x = draw.normal(size=(rows, FEATURES)).astype(np.float32)
        coef = np.linalg.lstsq(x, 20 * np.eye(CLASSES)[labels], rcond=None)[0].T
        features.append(x)
        heads.append((coef.astype(np.float64), np.zeros(CLASSES)))
    logits = draw.normal(size=(2, rows, CLASSES))
    parts = np.arange(rows) % 5
    fuse = Predictions(logits, tuple(features), labels, logits[:, None], parts=parts)
    return FusionInputs(fuse, None, parts, tuple(heads))


@pytest.mark.parametrize("method", [Vote, Weighted, Concat, Stack, StackBag])
def test_what_the_full_trainings_know_by_heart_helps_no_candidate(method: type[FusionMethod]) -> None:
    given = memorised()
    x = np.concatenate(given.fuse.features, axis=1)
    by_heart = softmax(x @ (np.concatenate([w for w, _ in given.heads], axis=1) / 2).T)
    assert nll(by_heart, given.fuse.labels) < 0.01
    fitted = fit_fusion("fusion", method, given)
    assert nll(fitted.nested, given.fuse.labels) > np.log(CLASSES) - 0.05
    assert fitted.temperature > 1.1, "nobody is sure"


def test_a_concat_learns_from_features_what_the_folds_do_not_say() -> None:
    """The features hold the class, and the out-of-fold logits nothing. What is exported is the full trainings' heads and more."""
    given = memorised()
    told = [x + 4 * np.eye(FEATURES)[given.fuse.labels].astype(np.float32) for x in given.fuse.features]
    given = replace(given, fuse=replace(given.fuse, features=tuple(told)), heads=tuple((0 * w, b) for w, b in given.heads))
    fitted = fit_fusion("concat", Concat, given)
    assert nll(fitted.nested, given.fuse.labels) < 0.7 * np.log(CLASSES)
    unseen = memorised(100).fuse
    told = [x + 4 * np.eye(FEATURES)[unseen.labels].astype(np.float32) for x in unseen.features]
    logits = np.zeros_like(unseen.logits)  # of heads that are all zero
    p = fitted.method.predict_proba(replace(unseen, features=tuple(told), logits=logits))
    method = fitted.method
    assert isinstance(method, Concat)
    exported = softmax(np.concatenate(told, axis=1) @ method.coef_.T + method.intercept_)
    assert np.abs(p - exported).max() < 1e-5


def test_a_concat_learns_from_features_whatever_the_full_trainings_know_by_heart() -> None:
    """Beside heads that are right on all of these rows there would be nothing to learn."""
    given = memorised()
    told = tuple(x + 4 * np.eye(FEATURES)[given.fuse.labels].astype(np.float32) for x in given.fuse.features)
    fitted = fit_fusion("concat", Concat, replace(given, fuse=replace(given.fuse, features=told)))
    assert nll(fitted.nested, given.fuse.labels) < 0.8 * np.log(CLASSES)


@pytest.mark.parametrize("name", ["vote", "weighted", "stack", "stack_bag", "vote_logits", "cascade"])
def test_fusions_without_features_need_none(name: str) -> None:
    given = memorised()
    without = replace(given, fuse=replace(given.fuse, features=()))
    assert FUSIONS[name].why_impossible(without) is None
    reason = FUSIONS["concat"].why_impossible(without)
    assert reason is not None
    assert "freeze: backbone" in reason


def test_the_folds_of_the_members_are_those_of_the_cross_validation() -> None:
    parts = np.array([0, 1, 2, 0, 1, 2])
    given = Predictions(np.zeros((1, 6, 2)), (), np.zeros(6, int), parts=parts)
    assert [held_out.tolist() for _, held_out in splits_of(given)] == [[0, 3], [1, 4], [2, 5]]
    assert [fitted.tolist() for fitted, _ in splits_of(given)] == [[1, 2, 4, 5], [0, 2, 3, 5], [0, 1, 3, 4]]
    assert [len(held_out) for _, held_out in splits_of(given.take(np.array([0, 1, 3])))] == [2, 1]


@pytest.mark.parametrize("folds", [2, 5, 7, 10, 50])
def test_more_folds_are_joined_to_five_and_stay_whole(folds: int) -> None:
    of_rows = np.arange(200) % folds
    joined = _merged(of_rows)
    assert len(np.unique(joined)) == min(folds, 5)
    assert all(len(np.unique(joined[of_rows == fold])) == 1 for fold in range(folds))
