"""Score probabilities, with confidence intervals and paired tests of differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fusion.metrics.calibration import TINY, apply_temperature, nll
from fusion.metrics.linearized import auroc_values, f1_values
from fusion.predictions import Floats, Labels
from fusion.results import TOP, Interval, Metric, Scores

FEWEST_ROWS = 500  # always evaluated, however long it takes
FEWEST_OF_A_CLASS = 10  # rows needed to estimate the spread of a class's accuracy
BINS = 15
LINEARIZED: dict[Metric, Callable[[Floats, Labels], Floats]] = {"auroc": auroc_values, "macro_f1": f1_values}
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


def mean_interval(values: Floats, groups: Labels | None = None) -> Interval:
    """Return the 95 % t interval of the mean of (n,) values.

    Args:
        values: (n,).
        groups: (n,) group of each row; rows of a group are not independent. None without groups.
    """
    from scipy.stats import t

    error, units = standard_error(values, groups)
    half = float(t.ppf(0.975, units - 1)) * error
    return float(values.mean()) - half, float(values.mean()) + half


def standard_error(values: Floats, groups: Labels | None = None) -> tuple[float, int]:
    """Return the standard error of the mean of (n,) values, and the number of independent units: rows, or groups (n,)."""
    deviations = by_group((values - values.mean()) / len(values), groups)
    units = max(2, len(deviations))
    return float(np.sqrt((deviations**2).sum() * units / (units - 1))), units


def by_group(values: Floats, groups: Labels | None) -> Floats:
    """Return the sum of (n,) values of each group, (G,); without groups, the values."""
    if groups is None:
        return values
    return np.bincount(np.unique(groups, return_inverse=True)[1], values).astype(np.float64)


def accuracy_interval(hits: Floats, groups: Labels | None = None) -> Interval:
    """Return the 95 % interval of an accuracy (Wilson 1927), by which 100 % of few rows is uncertain too.

    Args:
        hits: (n,) 1 for a right answer, else 0.
        groups: (n,) group of each row. Rows count for fewer if the rows of a group are right or wrong together.
    """
    accuracy, rows = float(hits.mean()), float(len(hits))
    if groups is not None:
        of_groups = by_group(hits - accuracy, groups)
        variance = (of_groups**2).sum() / rows**2
        rows = accuracy * (1 - accuracy) / variance if variance else float(len(of_groups))
        rows = min(rows, len(hits))
    z2 = TWO_SIDED**2
    centre, half = accuracy + z2 / (2 * rows), TWO_SIDED * np.sqrt(accuracy * (1 - accuracy) / rows + z2 / (4 * rows**2))
    return float(max(0.0, (centre - half) / (1 + z2 / rows))), float(min(1.0, (centre + half) / (1 + z2 / rows)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for the number of comparisons (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda n: p_values[n])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def detectable(probabilities: Floats, other: Floats, labels: Labels, groups: Labels | None = None) -> float:
    """Return the smallest accuracy difference that these rows can detect at 5 % with 80 % power.

    It depends on how often just one of the two candidates is right, and whether that is so for a whole group.
    """
    differing = (probabilities.argmax(1) == labels).astype(np.float64) - (other.argmax(1) == labels)
    return float((TWO_SIDED + POWER) * np.sqrt((by_group(differing, groups) ** 2).sum()) / len(labels))


def row_losses(probabilities: Floats, labels: Labels, metric: Metric = "nll") -> Floats:
    """Return the loss of each row, (n,), whose mean is the NLL, or 1 minus the metric.

    Args:
        probabilities: (n, C).
        labels: (n,).
        metric: The metric.
    """
    if metric == "nll":
        return np.asarray(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], TINY)))
    if metric in LINEARIZED:
        return np.asarray(1 - LINEARIZED[metric](probabilities, labels))
    if metric == "top5":
        better = (probabilities > probabilities[np.arange(len(labels)), labels][:, None]).sum(1)
        return np.asarray(better >= TOP, dtype=np.float64)
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


def is_at_chance(probabilities: Floats, labels: Labels, candidates: int = 1, groups: Labels | None = None) -> bool:
    """Return whether (n, C) probabilities are not significantly (5 %, one-sided) better than the class frequencies.

    One of three tests is enough to show that they are better: accuracy against always predicting the most common class, balanced
    accuracy against the same, or NLL against the class frequencies. Accuracy alone can miss a model that knows a rare class well.
    Balanced accuracy is not tested if a class has few rows.

    Args:
        probabilities: (n, C).
        labels: (n,).
        candidates: Number of candidates tested, for the Bonferroni correction.
        groups: (n,) group of each row; None without groups.
    """
    from scipy.stats import binomtest, t

    counts = np.bincount(labels)
    frequencies = counts / len(labels)
    if frequencies.max() == 1:  # with a single class, no test can show anything
        return True
    right, most_common = probabilities.argmax(1) == labels, float(frequencies.max())
    gains = [-np.log(frequencies[labels]) - row_losses(probabilities, labels, "nll")]
    p_values = []
    if groups is None:
        p_values.append(float(binomtest(int(right.sum()), len(labels), most_common, alternative="greater").pvalue))
    else:
        gains.append(right - most_common)
    if counts[counts > 0].min() >= FEWEST_OF_A_CLASS:
        gains.append(1 - 1 / np.count_nonzero(counts) - row_losses(probabilities, labels, "balanced_accuracy"))
    for gained in gains:
        error, units = standard_error(gained, groups)
        p_values.append(float(t.sf(gained.mean() / error, units - 1)) if error else 1.0)
    return min(p_values) >= 0.05 / (3 * candidates)
