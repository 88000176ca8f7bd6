"""Find labels that are probably wrong, from predictions of members that did not train on the row.

As in confident learning (Northcutt et al. 2021, arXiv:1911.00068), rows are ordered by the probability of their label, lowest
first. Its thresholds call thousands of merely hard images wrong, so the number of wrong labels is fitted instead. The model
assumes that a share of all labels was replaced by another class at random; this share and the members' temperature are fitted by
maximum likelihood. Labels without errors then give a share near zero, and no label is suspected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion.metrics.calibration import TINY, fit_temperature
from fusion.metrics.scores import is_at_chance
from fusion.predictions import Floats, Labels, log_softmax, softmax

SMALLEST_RATE = 1e-6


@dataclass(frozen=True)
class LabelDoubts:
    """Probability that each label is wrong.

    Attributes:
        probabilities: (n, C) pooled and calibrated probabilities of the members.
        wrong: (n,) probability that the label is wrong.
        rate: Fitted share of wrong labels.
    """

    probabilities: Floats
    wrong: Floats
    rate: float


def doubt_labels(logits: Floats, labels: Labels, groups: Labels | None = None) -> LabelDoubts:
    """Estimate the probability that each label is wrong.

    Args:
        logits: (M, n, C) of members that did not train on the rows.
        labels: (n,).
        groups: (n,) group of each row; None without groups.
    """
    mean, rows = log_softmax(logits).mean(0), np.arange(len(labels))
    others = mean.shape[1] - 1

    def parts(parameters: Floats) -> tuple[Floats, Floats, float]:
        """Return the likelihood of each label as right and as wrong, (n,) each, and the share of wrong labels."""
        of_label = log_softmax(mean / np.exp(parameters[0]))[rows, labels]
        rate = float(1 / (1 + np.exp(-parameters[1])))
        probability = np.exp(of_label)
        return (1 - rate) * probability, rate * (1 - probability) / others, rate

    def loss(parameters: Floats) -> float:
        right, wrong, rate = parts(parameters)
        # a weak prior, worth two rows, as in `fit_temperature`: a few rows that all fit must not drive T to zero
        prior = (2 * parameters[0] ** 2 + 20 * rate) / len(labels)
        return float(-np.log(np.maximum(right + wrong, TINY)).mean() + prior)

    from scipy.optimize import minimize

    first = np.log(fit_temperature(mean, labels))
    simplex = np.array([[first, np.log(0.02)], [first - 0.5, np.log(0.02)], [first, np.log(0.2)]])
    bounds = [(-np.log(20), np.log(20)), (np.log(SMALLEST_RATE), 0.0)]
    options = {"xatol": 1e-3, "fatol": 1e-7, "initial_simplex": simplex}
    fitted = minimize(loss, simplex[0], method="Nelder-Mead", bounds=bounds, options=options).x
    right, wrong, rate = parts(fitted)
    if is_at_chance(softmax(mean), labels, groups=groups):  # members at chance can't judge labels
        return LabelDoubts(softmax(mean), np.zeros(len(labels)), 0.0)
    return LabelDoubts(softmax(mean / np.exp(fitted[0])), wrong / np.maximum(right + wrong, TINY), rate)
