"""Rows that a fusion was fitted on judge nothing: neither its scores, nor its temperature, nor its prediction sets."""

from dataclasses import replace

import numpy as np
import pytest

from fusion.fitting.cross_validation import shuffled_splits
from fusion.methods.vote import Vote
from fusion.metrics.calibration import fit_temperature, log_probabilities, nll
from fusion.metrics.conformal import fit_level
from fusion.metrics.paired import Sample, accuracy_gain
from fusion.metrics.scores import detectable
from fusion.predictions import FusionInputs, Predictions, TeamPredictions, softmax
from fusion.selection.doubts import measure_abstention
from fusion.selection.fitting import fit_fusion
from tests.factories import CLASSES, table


class Overfitted(Vote):
    """Right and sure on the rows that it was fitted on; sure on all others, too, and wrong on most of them."""

    def fit(self, inputs: FusionInputs) -> "Overfitted":
        fuse = inputs.fuse
        self.known = {row.tobytes(): label for row, label in zip(fuse.logits[0], fuse.labels, strict=True)}
        return self

    def predict_proba(self, predictions: Predictions) -> np.ndarray:
        keys = [row.tobytes() for row in predictions.logits[0]]
        answers = [self.known.get(key, int.from_bytes(key[-3:], "big") % CLASSES) for key in keys]
        return softmax(6.0 * np.eye(CLASSES)[answers])


def overfitted(rows: int = 400) -> tuple[TeamPredictions, Overfitted]:
    numbers, fuse = np.arange(rows), table(rows)
    inputs = FusionInputs(fuse, None, np.zeros(0, int), ())
    return TeamPredictions(("a", "b", "c"), tuple("wxyz"), inputs, table(0), numbers, numbers, numbers), Overfitted()


def test_a_nested_temperature_does_not_see_the_rows_that_it_is_judged_by() -> None:
    fuse = table(400)
    held_out = shuffled_splits(400)[0][1]
    labels = fuse.labels.copy()
    labels[held_out] = (labels[held_out] + 1) % CLASSES  # wrong labels would ask for a high temperature
    judged = [
        fit_fusion("vote", Vote, FusionInputs(replace(fuse, labels=known), None, np.zeros(0, int), ()))
        for known in (fuse.labels, labels)
    ]
    assert np.array_equal(judged[0].nested[held_out], judged[1].nested[held_out])
    assert judged[1].temperature > judged[0].temperature, "all rows together choose the last temperature"


def test_the_last_temperature_comes_from_rows_that_the_method_was_not_fitted_on() -> None:
    """On the rows of its fit, an overfitted method is right and sure, and would stay as sure of all others."""
    team, method = overfitted()
    fuse = team.inputs.fuse
    fitted = fit_fusion("overfitted", lambda: method, team.inputs)
    assert fit_temperature(log_probabilities(fitted.method.predict_proba(fuse)), fuse.labels) < 1 < 3 < fitted.temperature
    assert nll(fitted.nested, fuse.labels) < np.log(CLASSES) + 0.1


def test_the_level_of_prediction_sets_comes_from_rows_that_the_model_was_not_fitted_on() -> None:
    team, method = overfitted()
    labels = team.inputs.fuse.labels
    fitted = fit_fusion("overfitted", lambda: method, team.inputs)
    measured = measure_abstention(team, fitted)
    level, coverage = measured.level, measured.coverage
    assert level == fit_level(fitted.nested, labels, coverage)
    assert level > 0.5 > fit_level(fitted.predict_proba(team.inputs.fuse), labels, coverage), (
        "the rows of the fit would need no sets"
    )


def test_a_detectable_difference_is_found_in_four_of_five_draws() -> None:
    """The power counts: at half of it, McNemar's test finds the difference in one of two draws."""
    draw, rows, differing = np.random.default_rng(0), 2000, 0.1
    labels = np.zeros(rows, dtype=np.int64)
    right, wrong = np.eye(2)[0], np.eye(2)[1]

    def answers(share_won: float) -> tuple[np.ndarray, np.ndarray]:
        kind = draw.choice(3, size=rows, p=[differing * share_won, differing * (1 - share_won), 1 - differing])
        first = np.where((kind == 1)[:, None], wrong, right)
        return first, np.where((kind == 0)[:, None], wrong, right)

    smallest = detectable(*answers(0.5), labels)
    share_won = 0.5 + smallest / differing / 2
    found = [accuracy_gain(*answers(share_won), Sample(labels)).p < 0.05 for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)
