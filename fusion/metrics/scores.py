"""Score probabilities, and say how sure the scores and their differences are: intervals and paired tests."""

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
FEWEST_ROWS = 500  # that are judged by, however long it takes
FEWEST_OF_A_CLASS = 10  # rows, by which the spread of its accuracy is known
BINS = 15
TWO_SIDED, POWER = 1.959964, 0.841621  # standard errors, of a test at 5 % and of a power of 80 %


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
        means = resampled_counts(len(values)) @ values.astype(np.float32) / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=2)
def resampled_counts(rows: int) -> NDArray[np.float32]:
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
    return float((TWO_SIDED + POWER) * np.sqrt(differing / len(labels)))


def row_losses(probabilities: Floats, labels: Labels, metric: Metric = "nll") -> Floats:
    """Return what each row loses by a metric, (n,): the mean is the NLL, 1 - accuracy, or 1 - balanced accuracy.

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
    return np.asarray(wrong * weights)  # every class counts alike


def accuracy_and_nll_losses(probabilities: Floats, labels: Labels, temperature: float = 1.0) -> Floats:
    """Return what each row loses in accuracy and in NLL, (2, n), from probabilities (n, C) after a temperature."""
    calibrated = apply_temperature(probabilities, temperature)
    return np.stack([row_losses(calibrated, labels, "accuracy"), row_losses(calibrated, labels, "nll")])


def evenly_drawn(rows: int, most: int, fewest: int = FEWEST_ROWS) -> Labels:
    """Return the positions of at most `most` of so many rows, evenly drawn; but of `fewest`, where there are so many."""
    most = max(fewest, most)
    return np.arange(rows) if rows <= most else np.linspace(0, rows - 1, most).astype(np.int64)


def loss_difference(losses: Floats, other: Floats, errors: float = TWO_SIDED) -> LossDifference:
    """Return how much more a candidate loses than another one on the same rows.

    Args:
        losses: (n,) of the candidate.
        other: (n,) of the other one.
        errors: Half of the interval's width in standard errors; from `simultaneous_errors` where there are several candidates.
    """
    difference = losses - other
    mean, error = float(difference.mean()), standard_error(difference)
    return LossDifference(mean, (mean - errors * error, mean + errors * error), (errors + POWER) * error)


def standard_error(values: Floats) -> float:
    """Return the standard error of the mean of (n,) values."""
    return float(values.std() / np.sqrt(len(values)))


def simultaneous_errors(losses: Mapping[str, Floats], best: str) -> float:
    """Return how many standard errors another candidate has to be worse than the best for 95 % confidence in all at once.

    This is a multiple comparison with the best (Hsu 1984), whose quantile is that of the largest studentised difference over
    bootstrap draws of the rows. A single comparison takes 1.96. The best of several is in part the luckiest: it takes more.

    Args:
        losses: (n,) losses of each candidate on the same rows.
        best: The candidate with the lowest mean.
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
    """Return whether (n, C) probabilities are not surely (5 %, one-sided) better than knowing how frequent each class is.

    Three things would show that they are: more right answers than by always naming the commonest class; a higher mean accuracy of
    the classes than that; or a lower NLL than that of the frequencies. A rare class may be known well without the first of them.
    By a class of few rows, the second can't be told.

    Args:
        probabilities: (n, C).
        labels: (n,).
        candidates: Of how many candidates this is asked, any of which may seem to be better by chance.
    """
    from scipy.stats import binomtest, norm

    counts = np.bincount(labels)
    frequencies = counts / len(labels)
    if frequencies.max() == 1:  # where there is one class, nothing can be seen
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
