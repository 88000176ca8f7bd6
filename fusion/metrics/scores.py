"""Score probabilities, and say how sure the scores and their differences are: intervals and paired tests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusion.metrics.calibration import TINY, nll
from fusion.predictions import Floats, Labels
from fusion.results import Gain, Interval, Scores

DRAWS = 2000
FEW_VALUES = 16
BINS = 15


def scores(probabilities: Floats, labels: Labels) -> Scores:
    """Return the scores of probabilities (n, C) for labels (n,)."""
    hits = probabilities.argmax(1) == labels
    one_hot = np.eye(probabilities.shape[1])[labels]
    return Scores(
        accuracy=float(hits.mean()),
        nll=nll(probabilities, labels),
        brier=float(((probabilities - one_hot) ** 2).sum(1).mean()),
        ece=calibration_error(probabilities, labels),
    )


def reliability(probabilities: Floats, labels: Labels, bins: int = BINS) -> tuple[Floats, Floats, Labels]:
    """Return summed confidence, hits and rows of each bin of equal width by confidence, all (bins,)."""
    confidence, hits = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    right = np.bincount(index, hits, bins).astype(np.float64)
    return np.bincount(index, confidence, bins).astype(np.float64), right, np.bincount(index, minlength=bins)


def calibration_error(probabilities: Floats, labels: Labels, bins: int = BINS) -> float:
    """Return the mean over bins of |confidence - accuracy|, weighted by rows (Naeini et al. 2015)."""
    confidence, hits, _ = reliability(probabilities, labels, bins)
    return float(np.abs(confidence - hits).sum() / len(labels))


def per_class(probabilities: Floats, labels: Labels) -> list[float | None]:
    """Return the accuracy on the rows of each class, or None for a class without rows."""
    hits = probabilities.argmax(1) == labels
    return [float(hits[labels == c].mean()) if (labels == c).any() else None for c in range(probabilities.shape[1])]


def bootstrap(values: Floats) -> Interval:
    """Return the 95 % percentile interval of the mean of (n,) values, with rows resampled.

    Of right and wrong answers there are few different values, and only how often each is drawn counts.
    """
    distinct, rows = np.unique(values, return_counts=True)
    if len(distinct) <= FEW_VALUES:
        means = np.random.default_rng(0).multinomial(len(values), rows / len(values), size=DRAWS) @ distinct / len(values)
    else:
        means = _resampled(len(values)) @ values.astype(np.float32) / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _resampled(rows: int) -> NDArray[np.float32]:
    """Return how often each row is in each draw, (DRAWS, n); the same for all values of so many rows."""
    counts = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=DRAWS)
    return counts.astype(np.float32)


def accuracy_gain(probabilities: Floats, other: Floats, labels: Labels) -> Gain:
    """Compare two candidates on the same rows.

    Args:
        probabilities: (n, C) of the candidate.
        other: (n, C) of the one that it is compared with.
        labels: (n,).
    """
    right, base = probabilities.argmax(1) == labels, other.argmax(1) == labels
    won, lost = int((right & ~base).sum()), int((~right & base).sum())
    from scipy.stats import binomtest

    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    difference = right.astype(np.float64) - base
    return Gain(float(difference.mean()), bootstrap(difference), p)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for the number of comparisons (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda n: p_values[n])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def detectable(probabilities: Floats, other: Floats, labels: Labels) -> float:
    """Return the smallest difference in accuracy that so many rows show at 5 % with 80 % power.

    It follows from how often the two candidates differ.
    """
    differing = float(((probabilities.argmax(1) == labels) != (other.argmax(1) == labels)).mean())
    from scipy.stats import norm

    return float((norm.ppf(0.975) + norm.ppf(0.8)) * np.sqrt(differing / len(labels)))


def nll_lower(probabilities: Floats, other: Floats, labels: Labels) -> bool:
    """Return whether the NLL of `probabilities` is lower than that of `other`, with paired-bootstrap 95 % confidence."""
    rows = np.arange(len(labels))
    difference = np.log(np.maximum(other[rows, labels], TINY)) - np.log(np.maximum(probabilities[rows, labels], TINY))
    return bootstrap(difference)[1] < 0
