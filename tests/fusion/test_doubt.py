"""What may be wrong with a label, and what the model can't tell: suspects, prediction sets and disagreement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.table import gathered
from fusion.export.abstaining import disagreement
from fusion.metrics.conformal import fit_level, level_after, prediction_sets, set_scores, useful_coverage
from fusion.metrics.label_errors import doubt_labels
from fusion.predictions import Predictions, softmax
from fusion.selection.doubts import find_suspects
from tests.factories import CLASSES, table


def flip(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share is changed at random, and which."""
    draw = np.random.default_rng(1)
    flipped = draw.choice(len(labels), round(share * len(labels)), replace=False)
    changed = labels.copy()
    changed[flipped] = (changed[flipped] + draw.integers(1, CLASSES, len(flipped))) % CLASSES
    return changed, flipped


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_the_share_of_flipped_labels_is_found_and_who_is_suspected_is_wrong(share: float) -> None:
    one = table(5000, skill=(1.0, 0.9, 0.8))
    labels, flipped = flip(one.labels, share)
    found = doubt_labels(one.logits, labels)
    assert found.rate == pytest.approx(share, rel=0.35)
    suspected = np.flatnonzero(found.wrong > 0.5)
    assert np.isin(suspected, flipped).mean() > 0.8
    assert np.isin(flipped, suspected).mean() > 0.6


def test_of_labels_without_errors_hardly_any_is_suspected_however_hard_the_images_are() -> None:
    for skill in ((1.0, 0.9, 0.8), (0.3, 0.2, 0.2), (0.0, 0.0, 0.0)):
        one = table(3000, skill=skill)
        assert (doubt_labels(one.logits, one.labels).wrong > 0.5).sum() <= 5


@pytest.mark.parametrize("skill", [(1.0, 0.9, 0.8), (0.4, 0.3, 0.3)])
def test_suspects_are_found_as_well_as_by_cleanlab(skill: tuple[float, ...]) -> None:
    """Of as many labels as cleanlab calls wrong, at least as many are; and of what is called wrong here, more is."""
    from cleanlab.filter import find_label_issues

    one = table(5000, skill=skill)
    labels, flipped = flip(one.labels, 0.05)
    found = doubt_labels(one.logits, labels)
    theirs = find_label_issues(labels, found.probabilities, return_indices_ranked_by="self_confidence")
    first = np.argsort(-found.wrong)[: len(theirs)]
    assert np.isin(first, flipped).sum() >= 0.98 * np.isin(theirs, flipped).sum()
    ours = np.flatnonzero(found.wrong > 0.5)
    assert np.isin(ours, flipped).mean() > np.isin(theirs, flipped).mean()


def test_two_rows_are_enough_to_judge_and_accuse_nobody() -> None:
    one = table(2)
    assert (doubt_labels(one.logits, one.labels).wrong < 0.5).all()


def test_of_flipped_labels_of_cifar_10_most_are_among_the_first_suspects() -> None:
    """2 % of all labels are changed at random: the first 2 % of the list hold at least 70 % of them.

    The images are JPEG files at quality 75. The members were trained with the right labels.
    """
    team, _ = gathered()
    draw = np.random.default_rng(0)
    rows = np.concatenate([team.fit_rows, team.fuse_rows, team.test_rows])
    flipped = set(draw.choice(rows, len(rows) // 50, replace=False).tolist())

    def with_errors(predictions: Predictions, numbers: np.ndarray) -> Predictions:
        wrong = np.isin(numbers, list(flipped))
        moved = (predictions.labels + draw.integers(1, 10, len(numbers))) % 10
        return replace(predictions, labels=np.where(wrong, moved, predictions.labels))

    assert team.inputs.oof is not None
    oof = with_errors(team.inputs.oof, team.fit_rows)
    inputs = replace(team.inputs, fuse=with_errors(team.inputs.fuse, team.fuse_rows), oof=oof)
    team = replace(team, inputs=inputs, test=with_errors(team.test, team.test_rows))
    suspects = find_suspects(team)
    first = [suspect.row for suspect in suspects[: len(flipped)]]
    found = len(flipped & set(first)) / len(flipped)
    assert found >= 0.7, f"{found:.1%} of the flipped labels were found"

    probable = [suspect.row for suspect in suspects if suspect.is_probable]
    assert len(probable) > len(flipped) / 4
    assert np.mean([row in flipped for row in probable]) > 0.9, "what is called probably wrong is wrong"


@pytest.mark.parametrize("seed", range(5))
def test_sets_hold_the_label_as_often_as_they_promise(seed: int) -> None:
    """Of an overconfident model too: coverage rests on the rows that the level was set on, and on nothing else."""
    fitted, fresh = table(2000, seed=seed), table(20_000, seed=seed + 100)
    sharp = softmax(4 * fitted.logits[2])
    level = fit_level(sharp, fitted.labels, 0.9)
    sets = prediction_sets(softmax(4 * fresh.logits[2]), level)
    covered = sets[np.arange(len(fresh.labels)), fresh.labels].mean()
    accuracy = (fresh.logits[2].argmax(1) == fresh.labels).mean()
    assert 0.885 < covered < max(0.92, accuracy + 0.001)
    assert sets[np.arange(len(sets)), fresh.logits[2].argmax(1)].all(), "the most probable class is in every set"


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("rows", [60, 500])
def test_sets_are_those_of_crepes(coverage: float, rows: int) -> None:
    """With the same scores: at rank ceil((n + 1) * coverage), and at a tie."""
    from crepes import ConformalClassifier

    fitted, fresh = table(rows, seed=1), table(1000, seed=2)
    held_out, new = (softmax(logits[2]) for logits in (fitted.logits, fresh.logits))
    scores = set_scores(held_out)[np.arange(rows), fitted.labels]
    theirs = ConformalClassifier().fit(scores, seed=0).predict_set(set_scores(new), confidence=coverage, smoothing=False)
    assert np.array_equal(prediction_sets(new, fit_level(held_out, fitted.labels, coverage)), theirs.astype(bool))


def test_the_coverage_is_above_the_accuracy_where_the_rows_suffice() -> None:
    """Sets of a coverage below the accuracy would hold the top class alone, and say nothing."""
    labels = np.arange(1000) % 2
    probabilities = np.where(np.eye(2)[labels] == 1, 0.9, 0.1)
    probabilities[:30] = probabilities[:30, ::-1]  # 97 % are right
    assert useful_coverage(probabilities, labels) == 0.99
    assert useful_coverage(probabilities[30:], labels[30:]) == 0.9, "nothing is above 100 %"
    assert useful_coverage(probabilities[:60], labels[:60]) == 0.9
    assert useful_coverage(probabilities[27:87], labels[27:87]) == 0.9, "60 rows don't allow 99 %"


def test_after_a_change_of_its_networks_a_model_has_a_level_of_its_own() -> None:
    """As when they are quantized: sharper probabilities would cover less at the old level."""
    fitted, fresh = table(2000, seed=1), table(20_000, seed=2)
    nested = softmax(fitted.logits[2])

    def changed(logits: np.ndarray) -> np.ndarray:
        return softmax(3 * logits[2])

    level = level_after(nested, nested, changed(fitted.logits), fitted.labels, 0.9)
    old = fit_level(nested, fitted.labels, 0.9)
    covered = [prediction_sets(changed(fresh.logits), x)[np.arange(20_000), fresh.labels].mean() for x in (level, old)]
    assert covered[0] == pytest.approx(0.9, abs=0.015) or covered[0] > 0.9
    assert abs(covered[1] - 0.9) > abs(covered[0] - 0.9)
    assert level == fit_level(changed(fitted.logits), fitted.labels, 0.9), "a fusion that fits nothing: its level is its own"


def test_a_set_takes_the_likeliest_classes_first() -> None:
    probabilities = np.array([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]])
    assert set_scores(probabilities)[0].tolist() == pytest.approx([0.0, 0.5, 0.8, 0.95])
    assert prediction_sets(probabilities, 0.5).tolist() == [[True, True, False, False], [True, False, False, False]]


def test_of_few_rows_nothing_is_promised_and_every_class_is_in_the_set() -> None:
    assert fit_level(np.full((5, 3), 1 / 3), np.zeros(5, int), 0.9) == 1.0
    assert prediction_sets(np.array([[0.9, 0.05, 0.05]]), 1.0).all()


def test_members_that_say_the_same_do_not_disagree_and_those_that_contradict_each_other_do() -> None:
    same = np.repeat(np.array([[[0.6, 0.4]]]), 3, axis=0)
    apart = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert disagreement(torch.from_numpy(same)).numpy() == pytest.approx([0.0])
    assert disagreement(torch.from_numpy(apart)).numpy() == pytest.approx([np.log(2)])
