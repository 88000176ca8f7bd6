"""Measure how differently members err: pairwise measures, the oracle, votes of fewer members, a verdict.

The pairwise measures follow Kuncheva and Whitaker (2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fusion.predictions import Floats, Labels, Predictions, softmax
from fusion.results import Diversity, Pair

MAX_ERROR_CORRELATION = 0.7  # error correlation: 0 for independent members, about 0.6 for ResNets with different recipes
MOST_SUBSETS = 60


def pair(first: str, second: str, right: NDArray[np.bool_]) -> Pair:
    """Compare two members, given `right` (2, n): whether each member is right on each row."""
    first_right, second_right = right
    both, neither = float((first_right & second_right).mean()), float((~first_right & ~second_right).mean())
    first_only, second_only = float((first_right & ~second_right).mean()), float((~first_right & second_right).mean())
    agreeing, differing = both * neither, first_only * second_only
    return Pair(
        first=first,
        second=second,
        disagreement=first_only + second_only,
        double_fault=neither,
        error_correlation=float(np.corrcoef(first_right, second_right)[0, 1]) if right.std(1).all() else 0.0,
        q=(agreeing - differing) / (agreeing + differing) if agreeing + differing else 0.0,
    )


def confusion(guesses: Labels, labels: Labels, classes: int) -> list[list[int]]:
    """Return the confusion matrix (C, C): rows are true classes, columns are predicted classes."""
    return np.bincount(labels * classes + guesses, minlength=classes**2).reshape(classes, classes).tolist()


def vote_accuracy(probabilities: Floats, labels: Labels) -> list[float]:
    """Return the mean accuracy of the votes of k of the M members, for k from 1 to M."""
    members, generator = len(probabilities), np.random.default_rng(0)
    found = []
    for k in range(1, members + 1):
        subsets = list(combinations(range(members), k))
        if len(subsets) > MOST_SUBSETS:
            subsets = [subsets[i] for i in generator.choice(len(subsets), MOST_SUBSETS, replace=False)]
        found.append(float(np.mean([probabilities[list(s)].mean(0).argmax(1) == labels for s in subsets])))
    return found


def diversity(names: Sequence[str], predictions: Predictions, judged_on: str = "fuse") -> Diversity:
    """Return all measures for a team's predictions on rows that no member trained on, which are called `judged_on`."""
    guesses, labels = predictions.logits.argmax(-1), predictions.labels
    right = guesses == labels
    error = float(1 - right.mean())
    pairs = [pair(names[i], names[j], right[[i, j]]) for i, j in combinations(range(len(names)), 2)]
    oracle, best = float(right.any(0).mean()), float(right.mean(1).max())
    return Diversity(
        confusion={name: confusion(g, labels, predictions.logits.shape[-1]) for name, g in zip(names, guesses, strict=True)},
        pairs=pairs,
        oracle=oracle,
        disagreement_over_error=float(np.mean([p.disagreement for p in pairs]) / error) if pairs and error else 0.0,
        vote_accuracy=vote_accuracy(softmax(predictions.logits), labels),
        verdict=verdict(oracle, best, pairs, judged_on),
    )


def verdict(oracle: float, best: float, pairs: Sequence[Pair], judged_on: str = "fuse") -> str:
    """Describe in words how far the members complete each other, and which are nearly the same.

    Args:
        oracle: Share of the rows on which at least one member is right.
        best: Share of the rows on which the best member is right.
        pairs: Every pair of members.
        judged_on: What the rows are called.
    """
    if not pairs:
        return "One member alone: there is nothing to fuse."
    text = f"At least one member is right on {oracle:.1%} of the {judged_on} images, and the best member on {best:.1%}."
    same = [p for p in pairs if p.error_correlation >= MAX_ERROR_CORRELATION or not p.disagreement]
    if same:
        names = "; ".join(f"{p.first} and {p.second}" for p in same)
        text += f" Nearly the same: {names}. Change augmentation, optimizer or architecture of one of them."
    return text
