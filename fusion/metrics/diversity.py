"""Measure how differently members err: pairs, the oracle, a forecast of more members, and a plain verdict.

Measures of pairs as in Kuncheva and Whitaker (2003).
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

NEARLY_THE_SAME = 0.7  # correlation of errors: 0 of independent members, near 0.6 of ResNets that differ in their recipes
MOST_SUBSETS = 60
WORTH_POINTS = 0.005  # a gain below this is told as none
WIDEST = 0.1  # a forecast with a wider interval, in accuracy, is left out


def pair(first: str, second: str, right: NDArray[np.bool_]) -> Pair:
    """Compare two members by `right` (2, n): whether each member is right on a row."""
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
    """Return counts (C, C): rows are true classes, columns are guesses."""
    return np.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes).tolist()


def forecast(hits: Floats, largest: int, most: float = 1.0) -> list[ForecastPoint]:
    """Forecast the accuracy of a vote of k members such as these.

    Args:
        hits: (M, n) from `mean_hits`.
        largest: Largest number of members to forecast for.
        most: Accuracy that no forecast exceeds.

    Returns:
        A point for each k from 1: measured as the mean over subsets, then going on as a - b/k, with an interval over the rows. A
        forecast that is too uncertain to be of use is left out.
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
    """Return how often votes of k members are right on each row, for each k from 1: the mean over subsets, (M, n)."""
    members, generator = len(probabilities), np.random.default_rng(0)
    found = []
    for k in range(1, members + 1):
        subsets = list(combinations(range(members), k))
        if len(subsets) > MOST_SUBSETS:
            subsets = [subsets[i] for i in generator.choice(len(subsets), MOST_SUBSETS, replace=False)]
        found.append(np.mean([probabilities[list(s)].mean(0).argmax(1) == labels for s in subsets], axis=0))
    return np.array(found)


def redrawn(values: Floats) -> Floats:
    """Return the means of (k, n) values over redrawn rows, (draws, k)."""
    rows = values.shape[1]
    return np.asarray(resampled_counts(rows) @ values.T.astype(np.float32) / rows, dtype=np.float64)


def limits_of(curves: Floats) -> tuple[Floats, Floats]:
    """Return (a, b) of accuracy = a - b/k, each (draws,), through the last two accuracies of each of (draws, k) curves."""
    k = curves.shape[1]
    slopes = np.maximum(0.0, (curves[:, -1] - curves[:, -2]) / (1 / (k - 1) - 1 / k))
    return curves[:, -1] + slopes / k, slopes


def limit_of(measured: Sequence[float]) -> tuple[float, float]:
    """Return (a, b) of accuracy = a - b/k through the last two accuracies of a sequence from k = 1 on; b is never negative."""
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
    """What a vote of ever more such members would gain over the best one, in accuracy.

    Attributes:
        gain: The gain, as far as it can be told.
        interval: Its bootstrap interval over the rows.
        most: What a perfect choice among the members' answers would gain.
    """

    gain: float
    interval: Interval
    most: float

    @classmethod
    def of(cls, right: NDArray[np.bool_], hits: Floats) -> Prospects:
        """Work it out from whether each member is right on a row (M, n), and how often votes of k are (M, n)."""
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
    """Say in words what fusing can gain here, and which member to change."""
    if not pairs:
        return "One member alone: there is nothing to fuse."
    low, high = (100 * bound for bound in prospects.interval)
    if high - low > 100 * WIDEST:
        text = "These rows are too few to tell what a vote of more members would gain in accuracy"
    elif prospects.gain < WORTH_POINTS:
        text = ("A vote" if prospects.most >= WORTH_POINTS else "Fusing") + " gains next to nothing in accuracy here"
    else:
        interval = f"{low:.1f} to {high:.1f}"
        gain = f"{prospects.gain * 100:.1f} points of accuracy ({interval}) over the best one"
        text = f"A vote of ever more members such as these would gain about {gain}"
    text += f"; even a perfect choice among the members' answers gains no more than {prospects.most * 100:.1f} points."
    same = [p for p in pairs if p.error_correlation >= NEARLY_THE_SAME or not p.disagreement]
    if same:
        names = "; ".join(f"{p.first} and {p.second}" for p in same)
        text += f" Nearly the same: {names}. Change augmentation, optimizer or architecture of one of them."
    return text
