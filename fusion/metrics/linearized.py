"""Values of single rows whose mean is a metric that is no mean over rows: AUROC and macro F1.

Each value is the metric plus the row's influence on it, so the spread of their mean is that of the metric to first order. For
AUROC this is DeLong's variance (DeLong et al. 1988). Only classes that the rows have count.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from fusion.predictions import Floats, Labels


def auroc_values(probabilities: Floats, labels: Labels) -> Floats:
    """Return a value for each row, (n,), whose mean is the AUROC of one class against the rest, averaged over the classes.

    The mean equals scikit-learn's `roc_auc_score(..., multi_class="ovr", average="macro")`.

    Args:
        probabilities: (n, C).
        labels: (n,).
    """
    present = [c for c in np.unique(labels) if (labels != c).any()]
    if not present:  # a single class: there is nothing to tell apart
        return np.ones(len(labels))
    return np.asarray(np.mean([_auroc_values(probabilities[:, c], labels == c) for c in present], axis=0))


def _auroc_values(scores: Floats, is_class: Labels) -> Floats:
    """Return a value for each row whose mean is the area under one class's ROC curve."""
    ranks, count, positives = rankdata(scores), len(scores), int(is_class.sum())
    placements = np.empty(count)
    # the share of the rows of the other side that each row is on the right side of; ties count half
    placements[is_class] = (ranks[is_class] - rankdata(scores[is_class])) / (count - positives)
    placements[~is_class] = 1 - (ranks[~is_class] - rankdata(scores[~is_class])) / positives
    area = placements[is_class].mean()
    share = np.where(is_class, positives, count - positives) / count
    return np.asarray(area + (placements - area) / share)


def f1_values(probabilities: Floats, labels: Labels) -> Floats:
    """Return a value for each row, (n,), whose mean is the F1 score averaged over the classes of the labels.

    The mean equals scikit-learn's `f1_score(..., labels=the classes of the labels, average="macro", zero_division=0)`.

    Args:
        probabilities: (n, C).
        labels: (n,).
    """
    guesses = probabilities.argmax(1)
    return np.asarray(np.mean([_f1_values(guesses == c, labels == c) for c in np.unique(labels)], axis=0))


def _f1_values(is_guessed: Labels, is_class: Labels) -> Floats:
    """Return a value for each row whose mean is one class's F1 score, 2 TP / (guessed + labelled)."""
    hits, size = (is_guessed & is_class).astype(np.float64), is_guessed.astype(np.float64) + is_class
    score = 2 * hits.mean() / size.mean()
    return np.asarray(score + (2 * hits - score * size) / size.mean())
