"""Calibrate probabilities by temperature scaling (Guo et al. 2017, arXiv:1706.04599).

The temperature is fitted by NLL as a separate last step: pool first, then calibrate.
"""

from __future__ import annotations

import numpy as np

from fusion.predictions import Floats, Inputs, Labels, Predictions, log_softmax, softmax

TINY = 1e-12
# A weak prior on log T (standard deviation 0.5), worth two rows. It only matters if a few rows, all classified correctly,
# would drive T to zero and make every later mistake infinitely expensive.
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
        logits: (n, C); log-probabilities also work.
        labels: (n,).
        tolerance: Absolute tolerance of log T.
    """
    shifted = logits - logits.max(1, keepdims=True)
    of_label = shifted[np.arange(len(labels)), labels].mean(dtype=np.float64)
    exponentials = np.empty(shifted.shape)  # in double precision, whatever the logits are in

    def loss(log_t: float) -> float:
        np.exp(np.multiply(shifted, np.exp(-log_t), out=exponentials), out=exponentials)
        normalizers = np.log(exponentials.sum(1)).mean(dtype=np.float64)
        return float(normalizers - np.exp(-log_t) * of_label + PRIOR * log_t**2 / len(labels))

    from scipy.optimize import minimize_scalar  # takes a second to import; light commands don't need it

    result = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded", options={"xatol": tolerance})
    return float(np.exp(result.x)) if result.fun < loss(0.0) else 1.0


def temperatures(predictions: Predictions) -> Floats:
    """Fit the temperature of each member on these rows, (M,)."""
    return np.array([fit_temperature(logits, predictions.labels) for logits in predictions.logits])


def calibrated_losses(logits: Floats, labels: Labels) -> Floats:
    """Return the NLL of each row, (n,), at the temperature fitted on all of these rows."""
    return np.asarray(-log_softmax(logits / fit_temperature(logits, labels))[np.arange(len(labels)), labels])


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Rescale probabilities (n, C) by a temperature."""
    return probabilities if temperature == 1.0 else softmax(log_probabilities(probabilities) / temperature)
