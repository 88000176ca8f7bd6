"""Calibrate by a temperature: one number, fitted by NLL, as a separate last stage (Guo et al. 2017, arXiv:1706.04599).

Pool first, then calibrate.
"""

from __future__ import annotations

import numpy as np

from fusion.predictions import Floats, Inputs, Labels, Predictions, log_softmax, softmax

TINY = 1e-12
# A weak prior on log T (standard deviation 0.5): worth two rows, so it only matters where a few rows, all classified
# rightly, would send T to zero and make every later mistake infinitely expensive.
PRIOR = 2.0


def nll(probabilities: Floats, labels: Labels) -> float:
    """Return the mean negative log-likelihood, in nats, of (n, C) probabilities for (n,) labels."""
    picked = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(picked, TINY)).mean())


def log_probabilities(probabilities: Floats) -> Floats:
    """Return the logarithm of probabilities, bounded below."""
    return np.asarray(np.log(np.maximum(probabilities, TINY)))


def fit_temperature(logits: Inputs, labels: Labels, tolerance: float = 1e-6) -> float:
    """Return the temperature in [1/20, 20] with the lowest NLL of softmax(logits / T), under a weak prior on log T.

    Args:
        logits: (n, C); log-probabilities will do.
        labels: (n,).
        tolerance: How exact log T has to be.
    """

    def loss(log_t: float) -> float:
        scaled = log_softmax(logits / np.exp(log_t))
        return float(-scaled[np.arange(len(labels)), labels].mean() + PRIOR * log_t**2 / len(labels))

    from scipy.optimize import minimize_scalar  # takes a second to import, which light commands do without

    result = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded", options={"xatol": tolerance})
    return float(np.exp(result.x)) if result.fun < loss(0.0) else 1.0


def temperatures(predictions: Predictions) -> Floats:
    """Return the temperature that suits each member on these rows, (M,)."""
    return np.array([fit_temperature(logits, predictions.labels) for logits in predictions.logits])


def calibrated_losses(logits: Floats, labels: Labels) -> Floats:
    """Return the NLL of each row, (n,), at the temperature that suits all of them."""
    return np.asarray(-log_softmax(logits / fit_temperature(logits, labels))[np.arange(len(labels)), labels])


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return (n, C) probabilities at another temperature."""
    return probabilities if temperature == 1.0 else softmax(log_probabilities(probabilities) / temperature)
