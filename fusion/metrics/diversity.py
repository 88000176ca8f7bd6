"""Measure how differently members err: pairwise measures, the oracle, a forecast for more members, a verdict.

The pairwise measures follow Kuncheva and Whitaker (2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fusion.metrics.scores import resampled_counts
from fusion.predictions import Floats, Labels, Predictions, softmax
from fusion.results import Diversity, ForecastPoint, Interval, Pair

NEARLY_THE_SAME = 0.7  # error correlation: 0 for independent members, about 0.6 for ResNets with different recipes
MOST_SUBSETS = 60
WORTH_POINTS = 0.005  # smaller gains are reported as none
WIDEST = 0.1  # of accuracy: forecasts with a wider interval are left out


def pair(first: str, second: str, right: NDArray[np.bool_]) -> Pair:
    """Compare two members, given `right` (2, n): whether each member is right on each row."""
    first_right, second_right = right
    both, neither = float((first_right & second_right).mean()), float((~first_right & ~second_right).mean())
    first_only, second_only = float((first_right & ~second_right).mean()), float((~first_right & second_right).mean())
    agreeing, differing = both * neither, first_only * second_only
    spread = float(np.sqrt(first_right.mean() * (1 - first_right.mean()) * second_right.mean() * (1 - second_right.mean())))
    return Pair(
        first=first,
        second=second,
        disagreement=first_only + second_only,
        double_fault=neither,
        error_correlation=(agreeing - differing) / spread if spread else 0.0,
        q=(agreeing - differing) / (agreeing + differing) if agreeing + differing else 0.0,
    )


def confusion(guesses: Labels, labels: Labels, classes: int) -> list[list[int]]:
    """Return the confusion matrix (C, C): rows are true classes, columns are predicted classes."""
    return np.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes).tolist()


def forecast(hits: Floats, largest: int, most: float = 1.0) -> list[ForecastPoint]:
    """Forecast the accuracy of a vote of k members like these.

    Args:
        hits: (M, n) from `mean_hits`.
        largest: Largest number of members to forecast for.
        most: Upper bound of the forecast accuracy.

    Returns:
        A point for each k from 1: measured up to M members, as the mean over subsets, then extrapolated as a - b/k, with a
        bootstrap interval over the rows. Forecasts that are too uncertain to be useful are left out.
    """
    members, measured = len(hits), hits.mean(1).tolist()
    points = [ForecastPoint(members=k + 1, accuracy=a, measured=True) for k, a in enumerate(measured)]
    if members < 2:
        return points
    limit, slope = limit_of(measured)
    drawn = redrawn(hits)
    limits, slopes = limits_of(drawn)
    for k in range(members + 1, largest + 1):
        low, high = np.percentile(np.clip(limits - slopes / k, drawn[:, -1], most), [2.5, 97.5])
        if high - low <= WIDEST:
            accuracy = max(measured[-1], min(limit - slope / k, most))
            points.append(ForecastPoint(members=k, accuracy=accuracy, measured=False, interval=(float(low), float(high))))
    return points


def mean_hits(probabilities: Floats, labels: Labels) -> Floats:
    """Return the share of k-member subsets whose vote is right on each row, for k from 1 to M: (M, n)."""
    members, generator = len(probabilities), np.random.default_rng(0)
    found = []
    for k in range(1, members + 1):
        subsets = list(combinations(range(members), k))
        if len(subsets) > MOST_SUBSETS:
            subsets = [subsets[i] for i in generator.choice(len(subsets), MOST_SUBSETS, replace=False)]
        found.append(np.mean([probabilities[list(s)].mean(0).argmax(1) == labels for s in subsets], axis=0))
    return np.array(found)


def redrawn(values: Floats) -> Floats:
    """Return bootstrap means (draws, k) of (k, n) values, with rows resampled."""
    rows = values.shape[1]
    return np.asarray(resampled_counts(rows) @ values.T.astype(np.float32) / rows, dtype=np.float64)


def limits_of(curves: Floats) -> tuple[Floats, Floats]:
    """Fit accuracy = a - b/k to the last two points of each curve: (draws, k) -> a and b, (draws,) each."""
    k = curves.shape[1]
    slopes = np.maximum(0.0, (curves[:, -1] - curves[:, -2]) / (1 / (k - 1) - 1 / k))
    return curves[:, -1] + slopes / k, slopes


def limit_of(measured: Sequence[float]) -> tuple[float, float]:
    """Fit accuracy = a - b/k, with b >= 0, to the last two of the accuracies for k = 1, 2, ...; return (a, b)."""
    if len(measured) < 2:
        return measured[-1], 0.0
    limits, slopes = limits_of(np.array([measured]))
    return float(limits[0]), float(slopes[0])


def diversity(names: Sequence[str], predictions: Predictions) -> Diversity:
    """Return all measures for a team's predictions on rows that no member trained on."""
    guesses, labels = predictions.logits.argmax(-1), predictions.labels
    right = guesses == labels
    error = float(1 - right.mean())
    pairs = [pair(names[i], names[j], right[[i, j]]) for i, j in combinations(range(len(names)), 2)]
    oracle = float(right.any(0).mean())
    hits = mean_hits(softmax(predictions.logits), labels)
    return Diversity(
        confusion={name: confusion(g, labels, predictions.logits.shape[-1]) for name, g in zip(names, guesses, strict=True)},
        pairs=pairs,
        oracle=oracle,
        disagreement_over_error=float(np.mean([p.disagreement for p in pairs]) / error) if pairs and error else 0.0,
        forecast=forecast(hits, 2 * len(names), oracle),
        verdict=verdict(Prospects.of(right, hits), pairs),
    )


@dataclass(frozen=True)
class Prospects:
    """Accuracy gain over the best member from a vote of ever more such members.

    Attributes:
        gain: The estimated gain.
        interval: Its bootstrap interval over the rows.
        most: Gain of a perfect choice among the members' answers (the oracle).
    """

    gain: float
    interval: Interval
    most: float

    @classmethod
    def of(cls, right: NDArray[np.bool_], hits: Floats) -> Prospects:
        """Estimate them from whether each member is right on each row, (M, n), and `mean_hits`, (M, n)."""
        best, oracle = right[right.mean(1).argmax()], right.any(0)
        most = float(oracle.mean() - best.mean())
        if len(hits) < 2:
            return cls(0.0, (0.0, 0.0), most)
        limit, _ = limit_of(hits.mean(1).tolist())
        drawn = redrawn(np.concatenate([hits, [best, oracle]]))
        limits, _ = limits_of(drawn[:, :-2])
        gains = np.minimum(limits, drawn[:, -1]) - drawn[:, -2]
        low, high = np.percentile(gains, [2.5, 97.5])
        return cls(min(limit, float(oracle.mean())) - float(best.mean()), (float(low), float(high)), most)


def verdict(prospects: Prospects, pairs: Sequence[Pair]) -> str:
    """Describe in words what fusing can gain, and which member to change."""
    if not pairs:
        return "One member alone: there is nothing to fuse."
    low, high = (100 * bound for bound in prospects.interval)
    if high - low > 100 * WIDEST:
        text = "These rows are too few to tell what a vote of more members would gain in accuracy"
    elif prospects.gain < WORTH_POINTS:
        text = ("A vote" if prospects.most >= WORTH_POINTS else "Fusing") + " gains next to nothing in accuracy here"
    else:
        interval = f"{low:.1f} to {high:.1f}"
        gain = f"{prospects.gain * 100:.1f} points of accuracy ({interval}) over the best member"
        text = f"A vote of ever more members such as these would gain about {gain}"
    text += f"; even a perfect choice among the members' answers gains no more than {prospects.most * 100:.1f} points."
    same = [p for p in pairs if p.error_correlation >= NEARLY_THE_SAME or not p.disagreement]
    if same:
        names = "; ".join(f"{p.first} and {p.second}" for p in same)
        text += f" Nearly the same: {names}. Change augmentation, optimizer or architecture of one of them."
    return text
