"""Compute conformal prediction sets, for a model that can abstain.

A set takes classes in order of decreasing probability until their total exceeds a level (adaptive prediction sets, Romano et
al. 2020, arXiv:2006.02544, without randomisation). It always holds the most probable class. The level is calibrated on held-out
rows, so that, for any model, the sets cover the true class of at least the wanted share of new rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusion.predictions import Floats, Labels

COVERAGE = 0.9
ROUNDING = 1e-9


def set_scores(probabilities: Floats) -> Floats:
    """Return the total probability of the classes that rank before each class, (n, C); 0 for the top class."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, 1)
    scores = np.empty_like(ordered)
    np.put_along_axis(scores, order, ordered.cumsum(1) - ordered, 1)
    return scores


def fit_level(probabilities: Floats, labels: Labels, coverage: float = COVERAGE) -> float:
    """Calibrate the level at which prediction sets cover the label of a new row with the wanted probability.

    Args:
        probabilities: (n, C) on held-out rows.
        labels: (n,).
        coverage: Wanted share of rows whose label is in the set.

    Returns:
        The level; 1 (sets of all classes) if there are too few rows for this coverage.
    """
    scores = np.sort(set_scores(probabilities)[np.arange(len(labels)), labels])
    rank = int(np.ceil((len(labels) + 1) * coverage))
    return float(min(1.0, scores[rank - 1])) if rank <= len(labels) else 1.0


def prediction_sets(probabilities: Floats, level: float) -> NDArray[np.bool_]:
    """Return the prediction sets as a mask (n, C). The most probable class is always included."""
    return np.asarray(set_scores(probabilities) <= level + ROUNDING)
