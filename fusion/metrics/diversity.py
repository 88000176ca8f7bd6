"""Measure how differently members err: pairs, the oracle, a forecast of more members, and a plain verdict.

Measures of pairs as in Kuncheva and Whitaker (2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fusion.predictions import Floats, Labels, Predictions, softmax
from fusion.results import Diversity, ForecastPoint, Pair

NEARLY_THE_SAME = 0.7  # correlation of errors: 0 of independent members, near 0.6 of ResNets that differ in their recipes
MOST_SUBSETS = 60
WORTH_POINTS = 0.005  # a gain below this is told as none


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


def forecast(probabilities: Floats, labels: Labels, largest: int, most: float = 1.0) -> list[ForecastPoint]:
    """Forecast the accuracy of a vote of k members such as these.

    Args:
        probabilities: (M, n, C).
        labels: (n,).
        largest: Largest number of members to forecast for.
        most: Accuracy that no forecast exceeds.

    Returns:
        A point for each k from 1: measured as the mean over subsets, then going on as a - b/k.
    """
    members = len(probabilities)
    generator = np.random.default_rng(0)
    measured = []
    for k in range(1, members + 1):
        subsets = list(combinations(range(members), k))
        if len(subsets) > MOST_SUBSETS:
            subsets = [subsets[i] for i in generator.choice(len(subsets), MOST_SUBSETS, replace=False)]
        hits = [float((probabilities[list(s)].mean(0).argmax(1) == labels).mean()) for s in subsets]
        measured.append(float(np.mean(hits)))
    points = [ForecastPoint(members=k + 1, accuracy=a, measured=True) for k, a in enumerate(measured)]
    limit, slope = limit_of(measured)
    more = range(members + 1, largest + 1) if members > 1 else ()
    ahead = [(k, max(measured[-1], min(limit - slope / k, most))) for k in more]
    return [*points, *(ForecastPoint(members=k, accuracy=accuracy, measured=False) for k, accuracy in ahead)]


def limit_of(measured: Sequence[float]) -> tuple[float, float]:
    """Return (a, b) of accuracy = a - b/k through the last two accuracies of a sequence from k = 1 on; b is never negative."""
    if len(measured) < 2:
        return measured[-1], 0.0
    k = len(measured)
    slope = max(0.0, (measured[-1] - measured[-2]) / (1 / (k - 1) - 1 / k))
    return measured[-1] + slope / k, slope


def diversity(names: Sequence[str], predictions: Predictions) -> Diversity:
    """Return all measures for a team's predictions on rows that no member trained on."""
    guesses, labels = predictions.logits.argmax(-1), predictions.labels
    right = guesses == labels
    error = float(1 - right.mean())
    pairs = [pair(names[i], names[j], right[[i, j]]) for i, j in combinations(range(len(names)), 2)]
    oracle = float(right.any(0).mean())
    ahead = forecast(softmax(predictions.logits), labels, 2 * len(names), oracle)
    return Diversity(
        confusion={name: confusion(g, labels, predictions.logits.shape[-1]) for name, g in zip(names, guesses, strict=True)},
        pairs=pairs,
        oracle=oracle,
        disagreement_over_error=float(np.mean([p.disagreement for p in pairs]) / error) if pairs and error else 0.0,
        forecast=ahead,
        verdict=verdict(float(right.mean(1).max()), oracle, pairs, ahead),
    )


def verdict(best: float, oracle: float, pairs: Sequence[Pair], ahead: Sequence[ForecastPoint]) -> str:
    """Say in words what fusing can gain here, and which member to change."""
    if not pairs:
        return "One member alone: there is nothing to fuse."
    limit, _ = limit_of([point.accuracy for point in ahead if point.measured])
    most = max(min(limit, oracle), max(point.accuracy for point in ahead)) - best
    text = f"A vote of ever more members such as these would gain about {most * 100:.1f} points over the best one"
    if most < WORTH_POINTS:
        text = ("A vote" if oracle - best >= WORTH_POINTS else "Fusing") + " gains next to nothing here"
    text += f"; even a perfect choice among the members' answers gains no more than {(oracle - best) * 100:.1f}."
    same = [p for p in pairs if p.error_correlation >= NEARLY_THE_SAME or not p.disagreement]
    if same:
        names = "; ".join(f"{p.first} and {p.second}" for p in same)
        text += f" Nearly the same: {names}. Change augmentation, optimizer or architecture of one of them."
    return text
