"""Temperature: one number, fitted by NLL, as a separate last stage (Guo et al. 2017). Pool first, then calibrate."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from fusion.outputs import Floats, Labels, Table, log_softmax, softmax

TINY = 1e-12
# A weak prior on log T (standard deviation 0.5): worth two rows, so it only matters where a few rows, all classified
# rightly, would send T to zero and make every later mistake infinitely expensive.
PRIOR = 2.0


def nll(probabilities: Floats, labels: Labels) -> float:
    """Mean negative log-likelihood in nats of (n, C) probabilities."""
    picked = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(picked, TINY)).mean())


def logs(probabilities: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(probabilities, TINY)))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The T in [1/20, 20] with the lowest NLL of softmax(logits / T) and a weak prior on log T.

    logits (n, C) may be log-probabilities.
    """

    def loss(log_t: float) -> float:
        scaled = log_softmax(logits / np.exp(log_t))
        return float(-scaled[np.arange(len(labels)), labels].mean() + PRIOR * log_t**2 / len(labels))

    found = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def temperatures(table: Table) -> Floats:
    """(M,): the one that suits each member on these rows."""
    return np.array([fit_temperature(logits, table.labels) for logits in table.logits])


def calibrated_losses(logits: Floats, labels: Labels) -> Floats:
    """(n,) NLL at the temperature that suits the rows."""
    return np.asarray(-log_softmax(logits / fit_temperature(logits, labels))[np.arange(len(labels)), labels])


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """(n, C) probabilities -> the same at temperature T."""
    return probabilities if temperature == 1.0 else softmax(logs(probabilities) / temperature)
