"""Calibrate a model that can abstain: conformal prediction sets, and a score of the members' disagreement.

A set holds the most probable class, and then, from the likeliest down, each class for which the likelier ones have not yet
spent a level of probability (adaptive prediction sets, Romano et al. 2020, arXiv:2006.02544, without randomisation). The level
is set on rows that the model was not fitted on, so that the true class is in the set for at least the wanted share of new rows,
whatever the model is like.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusion.predictions import Floats, Labels

COVERAGE = 0.9
ROUNDING = 1e-9


def set_scores(probabilities: Floats) -> Floats:
    """Return how much probability the classes before each class have, (n, C): 0 for the most probable one."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, 1)
    scores = np.empty_like(ordered)
    np.put_along_axis(scores, order, ordered.cumsum(1) - ordered, 1)
    return scores


def fit_level(probabilities: Floats, labels: Labels, coverage: float = COVERAGE) -> float:
    """Return the level at which sets hold the label of a new row with the wanted probability.

    Args:
        probabilities: (n, C) on rows that the model was not fitted on.
        labels: (n,).
        coverage: The wanted share.

    Returns:
        The level; 1 where the rows are too few to be sure of less than all classes.
    """
    scores = np.sort(set_scores(probabilities)[np.arange(len(labels)), labels])
    rank = int(np.ceil((len(labels) + 1) * coverage))
    return float(min(1.0, scores[rank - 1])) if rank <= len(labels) else 1.0


def prediction_sets(probabilities: Floats, level: float) -> NDArray[np.bool_]:
    """Return which classes are in each row's set, (n, C). The most probable class always is."""
    return np.asarray(set_scores(probabilities) <= level + ROUNDING)


def disagreement(probabilities: Floats) -> Floats:
    """Return how much members disagree on each row, (n,): the entropy of their mean less the mean of their entropies, in nats.

    It is the mutual information of the answer and the member (Lakshminarayanan et al. 2017). It is 0 where all say the same.

    Args:
        probabilities: (M, n, C).
    """

    def entropy(p: Floats) -> Floats:
        return np.asarray(-(p * np.log(np.maximum(p, 1e-12))).sum(-1))

    return np.asarray(np.maximum(entropy(probabilities.mean(0)) - entropy(probabilities).mean(0), 0.0))
