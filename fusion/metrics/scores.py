"""Score probabilities, with confidence intervals and paired tests of differences."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusion.metrics.calibration import TINY, apply_temperature, nll
from fusion.predictions import Floats, Labels
from fusion.results import Gain, Interval, LossDifference, Metric, Scores

DRAWS = 2000
FEW_VALUES = 16
FEWEST_ROWS = 500  # always evaluated, however long it takes
FEWEST_OF_A_CLASS = 10  # rows needed to estimate the spread of a class's accuracy
BINS = 15
TWO_SIDED, POWER = 1.959964, 0.841621  # critical values: a two-sided test at 5 %, and 80 % power


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


def reliability(probabilities: Floats, labels: Labels) -> tuple[Floats, Floats, Labels]:
    """Return the summed confidence, hits and rows of each equal-width confidence bin, (BINS,) each."""
    confidence, hits = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    right = np.bincount(index, hits, BINS).astype(np.float64)
    return np.bincount(index, confidence, BINS).astype(np.float64), right, np.bincount(index, minlength=BINS)


def calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Return the mean over bins of |confidence - accuracy|, weighted by rows (Naeini et al. 2015)."""
    confidence, hits, _ = reliability(probabilities, labels)
    return float(np.abs(confidence - hits).sum() / len(labels))


def per_class(probabilities: Floats, labels: Labels) -> list[float | None]:
    """Return the accuracy on the rows of each class, or None for a class without rows."""
    hits = probabilities.argmax(1) == labels
    return [float(hits[labels == c].mean()) if (labels == c).any() else None for c in range(probabilities.shape[1])]


def bootstrap(values: Floats) -> Interval:
    """Return the 95 % percentile interval of the mean of (n,) values, with rows resampled.

    If there are few distinct values, such as 0 and 1, only the count of each value is drawn, which is faster.
    """
    distinct, rows = np.unique(values, return_counts=True)
    if len(distinct) <= FEW_VALUES:
        means = np.random.default_rng(0).multinomial(len(values), rows / len(values), size=DRAWS) @ distinct / len(values)
    else:
        means = resampled_counts(len(values)) @ values.astype(np.float32) / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=2)
def resampled_counts(rows: int) -> NDArray[np.float32]:
    """Return the bootstrap counts of each row, (DRAWS, n): the same draws whenever n is the same."""
    counts = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=DRAWS)
    return counts.astype(np.float32)


def accuracy_gain(probabilities: Floats, other: Floats, labels: Labels) -> Gain:
    """Compare the accuracy of a candidate with that of a baseline on the same rows.

    Args:
        probabilities: (n, C) of the candidate.
        other: (n, C) of the baseline.
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
    """Return the smallest accuracy difference that these rows can detect at 5 % with 80 % power.

    It depends on how often just one of the two candidates is right.
    """
    differing = float(((probabilities.argmax(1) == labels) != (other.argmax(1) == labels)).mean())
    return float((TWO_SIDED + POWER) * np.sqrt(differing / len(labels)))


def row_losses(probabilities: Floats, labels: Labels, metric: Metric = "nll") -> Floats:
    """Return the loss of each row, (n,), with mean NLL, 1 - accuracy or 1 - balanced accuracy.

    Args:
        probabilities: (n, C).
        labels: (n,).
        metric: The metric.
    """
    if metric == "nll":
        return np.asarray(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], TINY)))
    wrong: Floats = (probabilities.argmax(1) != labels).astype(np.float64)
    if metric == "accuracy":
        return wrong
    _, which, rows = np.unique(labels, return_inverse=True, return_counts=True)
    weights: Floats = np.asarray(len(labels) / (len(rows) * rows[which]))
    return np.asarray(wrong * weights)  # every class has the same weight


def accuracy_and_nll_losses(probabilities: Floats, labels: Labels, temperature: float = 1.0) -> Floats:
    """Return the accuracy loss and the NLL of each row, (2, n), for probabilities (n, C) after a temperature."""
    calibrated = apply_temperature(probabilities, temperature)
    return np.stack([row_losses(calibrated, labels, "accuracy"), row_losses(calibrated, labels, "nll")])


def evenly_drawn(rows: int, most: int, fewest: int = FEWEST_ROWS) -> Labels:
    """Return the positions of at most `most` evenly spaced rows, but of at least `fewest` if there are that many."""
    most = max(fewest, most)
    return np.arange(rows) if rows <= most else np.linspace(0, rows - 1, most).astype(np.int64)


def loss_difference(losses: Floats, other: Floats, errors: float = TWO_SIDED) -> LossDifference:
    """Compare the losses of a candidate with those of a baseline on the same rows.

    Args:
        losses: (n,) of the candidate.
        other: (n,) of the baseline.
        errors: Half-width of the interval in standard errors; from `simultaneous_critical_value` for several candidates.
    """
    difference = losses - other
    mean, error = float(difference.mean()), standard_error(difference)
    return LossDifference(mean, (mean - errors * error, mean + errors * error), (errors + POWER) * error)


def standard_error(values: Floats) -> float:
    """Return the standard error of the mean of (n,) values."""
    return float(values.std() / np.sqrt(len(values)))


def simultaneous_critical_value(losses: Mapping[str, Floats], best: str) -> float:
    """Return the critical value, in standard errors, to compare all candidates with the best at 95 % confidence.

    This is a multiple comparison with the best (Hsu 1984): the critical value is the 95 % quantile of the largest studentised
    difference over bootstrap draws of the rows. A single comparison takes 1.96. The best of several candidates is partly the
    luckiest, so the value is larger.

    Args:
        losses: (n,) losses of each candidate on the same rows.
        best: Name of the candidate with the lowest mean loss.
    """
    differences = [values - losses[best] for name, values in losses.items() if name != best]
    columns = np.array([d for d in differences if d.std() > 0])
    if not len(columns):
        return TWO_SIDED
    centred = (columns - columns.mean(1, keepdims=True)) / columns.std(1, keepdims=True)
    rows = centred.shape[1]
    drawn = resampled_counts(rows)  # (DRAWS, n)
    means = drawn @ centred.T.astype(np.float32) / rows
    squares = drawn @ (centred.T**2).astype(np.float32) / rows
    spread = np.sqrt(np.maximum(squares - means**2, 1e-12))
    return max(TWO_SIDED, float(np.percentile((means * np.sqrt(rows) / spread).max(1), 95)))


def is_at_chance(probabilities: Floats, labels: Labels, candidates: int = 1) -> bool:
    """Return whether (n, C) probabilities are not significantly (5 %, one-sided) better than the class frequencies.

    One of three tests is enough to show that they are better: accuracy against always predicting the most common class, balanced
    accuracy against the same, or NLL against the class frequencies. Accuracy alone can miss a model that knows a rare class well.
    Balanced accuracy is not tested if a class has few rows.

    Args:
        probabilities: (n, C).
        labels: (n,).
        candidates: Number of candidates tested, for the Bonferroni correction.
    """
    from scipy.stats import binomtest, norm

    counts = np.bincount(labels)
    frequencies = counts / len(labels)
    if frequencies.max() == 1:  # with a single class, no test can show anything
        return True
    right = int((probabilities.argmax(1) == labels).sum())
    p_values = [float(binomtest(right, len(labels), float(frequencies.max()), alternative="greater").pvalue)]
    of_frequencies = -np.log(frequencies[labels])
    gains = [of_frequencies - row_losses(probabilities, labels, "nll")]
    if counts[counts > 0].min() >= FEWEST_OF_A_CLASS:
        gains.append(1 - 1 / np.count_nonzero(counts) - row_losses(probabilities, labels, "balanced_accuracy"))
    for gained in gains:
        error = standard_error(gained)
        p_values.append(float(norm.sf(gained.mean() / error)) if error else 1.0)
    return min(p_values) >= 0.05 / (3 * candidates)
