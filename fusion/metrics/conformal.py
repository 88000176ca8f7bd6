"""Compute conformal prediction sets, for a model that can abstain.

A set takes classes in order of decreasing probability until their total exceeds a level (adaptive prediction sets, Romano et
al. 2020, arXiv:2006.02544, without randomisation). It always holds the most probable class. The level is calibrated on held-out
rows, so that, for any model, the sets cover the true class of at least the wanted share of new rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusion.predictions import Floats, Labels

COVERAGES = (0.9, 0.95, 0.99, 0.995, 0.999)
ROUNDING = 1e-9


def set_scores(probabilities: Floats) -> Floats:
    """Return the total probability of the classes that rank before each class, (n, C); 0 for the top class."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, 1)
    scores = np.empty_like(ordered)
    np.put_along_axis(scores, order, ordered.cumsum(1) - ordered, 1)
    return scores


def useful_coverage(probabilities: Floats, labels: Labels) -> float:
    """Return a coverage that says more than the accuracy: sets that hold only the top class must not be enough for it.

    Args:
        probabilities: (n, C) on held-out rows.
        labels: (n,).

    Returns:
        The smallest of COVERAGES above the accuracy for which there are enough rows; else the first one.
    """
    accuracy = float((probabilities.argmax(1) == labels).mean())
    enough = [coverage for coverage in COVERAGES if coverage > accuracy and _rank(len(labels), coverage) <= len(labels)]
    return enough[0] if enough else COVERAGES[0]


def fit_level(probabilities: Floats, labels: Labels, coverage: float) -> float:
    """Calibrate the level at which prediction sets cover the label of a new row with the wanted probability.

    Args:
        probabilities: (n, C) on held-out rows.
        labels: (n,).
        coverage: Wanted share of rows whose label is in the set.

    Returns:
        The level; 1 (sets of all classes) if there are too few rows for this coverage.
    """
    return level_of(set_scores(probabilities)[np.arange(len(labels)), labels], coverage)


def level_of(scores: Floats, coverage: float) -> float:
    """Return the level from the scores (n,) of the right classes, as `fit_level` does."""
    rank = _rank(len(scores), coverage)
    return float(np.clip(np.sort(scores)[rank - 1], 0.0, 1.0)) if rank <= len(scores) else 1.0


def level_after(nested: Floats, before: Floats, after: Floats, labels: Labels, coverage: float) -> float:
    """Calibrate the level of a model after a change of its networks, such as to integers.

    The changed networks give no nested predictions, so each row's nested score is moved by what the change does to the model's.

    Args:
        nested: (n, C) nested predictions of the model's fusion.
        before: (n, C) of the model.
        after: (n, C) of the changed model.
        labels: (n,).
        coverage: Wanted share of rows whose label is in the set.
    """
    of_nested, of_before, of_after = (set_scores(p)[np.arange(len(labels)), labels] for p in (nested, before, after))
    return level_of(of_nested + of_after - of_before, coverage)


def _rank(rows: int, coverage: float) -> int:
    return int(np.ceil((rows + 1) * coverage))


def prediction_sets(probabilities: Floats, level: float) -> NDArray[np.bool_]:
    """Return the prediction sets as a mask (n, C). The most probable class is always included."""
    return np.asarray(set_scores(probabilities) <= level + ROUNDING)
