"""Compare candidates on the same rows, by a bootstrap of rows or of groups of rows.

The metric is computed anew in each draw, because not every metric is a mean over rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fusion.metrics.scores import TWO_SIDED, row_losses
from fusion.predictions import Floats, Labels, Predictions
from fusion.results import Gain, Interval, LossDifference, Metric

DRAWS = 2000
BLOCK = 1 << 23  # row counts in memory at a time: 32 MiB
ONE_SIDED = 1.644854  # critical value of a one-sided test at 5 %
LEVEL = 95  # per cent
SMOOTH: tuple[Metric, ...] = ("nll", "auroc")  # nearly every row tells two candidates apart
MAX_ERROR_RATIO = 3.0  # of the sample's standard error to a draw's; a draw without the few rows that differ would have none
Counts = NDArray[np.float32]


def unit_counts(units: int) -> Iterator[Counts]:
    """Yield how often each of `units` rows or groups is drawn, (B, units), in blocks of DRAWS draws in all."""
    generator, left = np.random.default_rng(0), DRAWS
    while left:
        size = max(1, min(left, BLOCK // units))
        draws = (np.bincount(generator.integers(0, units, units), minlength=units) for _ in range(size))
        yield np.stack([draw.astype(np.float32) for draw in draws])
        left -= size


class Sample:
    """Rows to judge candidates on, with the units that a bootstrap draws.

    Args:
        labels: (n,).
        groups: (n,) group of each row, such as a patient. Groups are drawn whole. None to draw rows.

    Attributes:
        rows: Number of rows.
        units: Number of units.
    """

    @classmethod
    def of(cls, predictions: Predictions) -> Sample:
        """Return the rows of predictions."""
        return cls(predictions.labels, predictions.groups)

    def __init__(self, labels: Labels, groups: Labels | None = None) -> None:
        self.labels, self.rows, self.has_groups = labels, len(labels), groups is not None
        self.unit = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
        self.units = int(self.unit.max(initial=-1)) + 1
        _, self.class_of, self.class_rows = np.unique(labels, return_inverse=True, return_counts=True)

    @property
    def t_over_normal(self) -> float:
        """By how much a t interval over the groups is wider than a normal one; 1 without groups."""
        from scipy.stats import t

        return float(t.ppf(0.975, max(1, self.units - 1)) / TWO_SIDED) if self.has_groups else 1.0

    def loss(self, probabilities: Floats, metric: Metric) -> float:
        """Return a candidate's loss from its probabilities (n, C): NLL, or 1 minus the metric."""
        return float(self.mean(self.row_losses(probabilities, metric)[None], metric)[0, 0])

    def interval(self, probabilities: Floats, metric: Metric) -> Interval:
        """Return the 95 % interval of a candidate's loss, from its influence on single rows or groups."""
        from scipy.stats import t

        values = self.row_losses(probabilities, metric)[None]
        loss, units = float(self.mean(values, metric)[0, 0]), max(2, self.units)
        error = float(np.sqrt((self.influence(values, metric) ** 2).sum() * units / (units - 1)))
        half = float(t.ppf(0.975, units - 1)) * error
        return loss - half, loss + half

    def row_losses(self, probabilities: Floats, metric: Metric) -> Floats:
        """Return the loss of each row, (n,), whose mean in the sense of the metric is the loss."""
        return row_losses(probabilities, self.labels, "accuracy" if metric == "balanced_accuracy" else metric)

    def mean(self, values: Floats, metric: Metric, counts: Counts | None = None) -> Floats:
        """Return the metric of K candidates in B draws, (B, K).

        Args:
            values: (K, n) loss of each row, of `row_losses`.
            metric: How rows are averaged: balanced accuracy gives the classes in a draw equal weights.
            counts: (B, units) how often each unit is drawn; None for each unit once.
        """
        by_row = np.ones((1, len(self.labels)), np.float32) if counts is None else counts[:, self.unit]
        if metric != "balanced_accuracy":
            return np.asarray(by_row @ values.T / by_row.sum(1, keepdims=True), dtype=np.float64)
        order = np.argsort(self.class_of, kind="stable")
        starts, by_row = np.cumsum(self.class_rows) - self.class_rows, by_row[:, order]
        drawn = np.add.reduceat(by_row, starts, axis=1)  # (B, C)
        wrong = [np.add.reduceat(by_row * row, starts, axis=1) for row in values[:, order].astype(np.float32)]
        rates = np.stack(wrong, axis=1) / np.maximum(drawn, 1)[:, None]
        return np.asarray(rates.sum(2) / (drawn > 0).sum(1)[:, None], dtype=np.float64)

    def influence(self, values: Floats, metric: Metric) -> Floats:
        """Return the first-order effect of each unit on the metric of each candidate, (K, units): their sum is 0."""
        if metric == "balanced_accuracy":
            rates = np.stack([values[:, self.class_of == c].mean(1) for c in range(len(self.class_rows))], axis=1)
            rows = (values - rates[:, self.class_of]) / (self.class_rows * len(self.class_rows))[self.class_of]
        else:
            rows = (values - values.mean(1, keepdims=True)) / values.shape[1]
        return np.stack([np.bincount(self.unit, row, self.units) for row in rows])


def compare_losses(
    probabilities: Mapping[str, Floats], baseline: str, sample: Sample, metric: Metric = "nll"
) -> dict[str, LossDifference]:
    """Compare candidates with a baseline, by intervals and upper bounds that hold for all of them at once at 95 %.

    The critical values are quantiles of the largest studentised difference over bootstrap draws (max-t, Westfall and Young
    1993). Accuracies of rows without groups get score intervals (Tango 1998), which are wide if hardly any row tells the
    candidates apart. For the same reason, balanced accuracies and groups count one more row won and one more lost (Bonett and
    Price 2012), and groups t quantiles.

    Args:
        probabilities: (n, C) of each candidate.
        baseline: Name of the baseline.
        sample: The rows.
        metric: The metric; the loss of one that is a share is 1 minus it.
    """
    names = [name for name in probabilities if name != baseline]
    if not names:
        return {}
    of_baseline = sample.row_losses(probabilities[baseline], metric)
    values = np.stack([sample.row_losses(probabilities[name], metric) - of_baseline for name in names])
    estimates = sample.mean(values, metric)[0]
    errors = np.sqrt((sample.influence(values, metric) ** 2).sum(1))
    two_sided, one_sided = _critical_values(values, sample, metric)
    if metric not in SMOOTH:
        errors = np.sqrt(errors**2 + 2 / (sample.units * sample.rows)) * sample.t_over_normal
    compared = {}
    for name, row, estimate, error in zip(names, values, estimates, errors, strict=True):
        interval = (estimate - two_sided * error, estimate + two_sided * error)
        upper = estimate + one_sided * error
        if metric in ("accuracy", "top5") and not sample.has_groups:
            discordant = int((row > 0).sum()), int((row < 0).sum())
            interval = score_interval(*discordant, len(row), two_sided)
            upper = score_interval(*discordant, len(row), one_sided)[1]
        compared[name] = LossDifference(float(estimate), interval, float(upper))
    return compared


def accuracy_gain(probabilities: Floats, baseline: Floats, sample: Sample) -> Gain:
    """Compare the accuracy of a candidate with that of a baseline on the same rows.

    Args:
        probabilities: (n, C) of the candidate.
        baseline: (n, C) of the baseline.
        sample: The rows.

    Returns:
        The gain, with McNemar's exact p-value; if there are groups, with that of a z test over the groups.
    """
    from scipy.stats import binomtest, norm

    compared = compare_losses({"candidate": probabilities, "baseline": baseline}, "baseline", sample, "accuracy")["candidate"]
    right, of_baseline = (p.argmax(1) == sample.labels for p in (probabilities, baseline))
    won, lost = int((right & ~of_baseline).sum()), int((~right & of_baseline).sum())
    if not sample.has_groups:
        p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    else:
        error = (compared.interval[1] - compared.interval[0]) / (2 * TWO_SIDED)
        p = float(2 * norm.sf(abs(compared.difference) / error))
    low, high = compared.interval
    return Gain(0.0 - compared.difference, (0.0 - high, 0.0 - low), p)


def _critical_values(values: Floats, sample: Sample, metric: Metric) -> tuple[float, float]:
    """Return the two-sided and the one-sided critical value, in standard errors, for the differences (K, n).

    Each draw of an NLL is divided by its own standard error. A draw of few discordant rows may have none of them, so the other
    metrics keep the sample's standard error.
    """
    influences = sample.influence(values, metric)
    errors = np.sqrt((influences**2).sum(1))
    varying = errors > 0
    if not varying.any() or (len(values) == 1 and metric not in SMOOTH):
        return TWO_SIDED, ONE_SIDED
    values, influences, errors = values[varying], influences[varying], errors[varying]
    estimates, largest, extreme = sample.mean(values, metric), [], []
    for counts in unit_counts(sample.units):
        spread: Floats = errors[None]
        if metric in SMOOTH:
            means, squares = counts @ influences.T, counts @ (influences**2).T
            spread = np.sqrt(np.maximum(squares - means**2 / sample.units, (errors / MAX_ERROR_RATIO) ** 2))
        t = (estimates - sample.mean(values, metric, counts)) / spread
        largest.append(t.max(1))
        extreme.append(np.abs(t).max(1))
    two_sided, one_sided = (float(np.percentile(np.concatenate(draws), LEVEL)) for draws in (extreme, largest))
    return max(TWO_SIDED, two_sided), max(ONE_SIDED, one_sided)


def score_interval(lost: int, won: int, rows: int, z: float) -> Interval:
    """Return the score interval for the difference (lost - won) / rows of two paired proportions (Tango 1998).

    Args:
        lost: Rows that only the baseline gets right.
        won: Rows that only the candidate gets right.
        rows: Number of all rows.
        z: Critical value.
    """

    def excess(delta: float) -> float:
        """Return the squared score statistic at a difference `delta`, minus z squared."""
        b = -lost - won + (2 * rows - lost + won) * delta
        q = (np.sqrt(max(0.0, b**2 - 8 * rows * (-won * delta * (1 - delta)))) - b) / (4 * rows)
        variance = rows * (2 * q + delta * (1 - delta))
        return float((lost - won - rows * delta) ** 2 / max(variance, 1e-300) - z**2)

    from scipy.optimize import brentq

    estimate = (lost - won) / rows
    low = brentq(excess, -1 + 1e-12, estimate) if estimate > -1 else -1.0
    high = brentq(excess, estimate, 1 - 1e-12) if estimate < 1 else 1.0
    return float(low), float(high)
