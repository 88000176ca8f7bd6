"""Scores, gains and costs of candidates, and how the recommended candidate was chosen."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from fusion.results.base import FusionResult, Interval, Metric


class Scores(FusionResult):
    """Scores of probabilities.

    Attributes:
        accuracy: From 0 to 1.
        nll: Mean negative log-likelihood in nats.
        brier: Brier score, from 0 to 2.
        ece: Expected calibration error, from 0 to 1.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float


class Gain(NamedTuple):
    """Accuracy gain of a candidate over a baseline on the same rows.

    Attributes:
        difference: Difference in accuracy.
        interval: Its paired bootstrap interval at 95 %.
        p: McNemar's exact p-value.
    """

    difference: float
    interval: Interval
    p: float


class LossDifference(NamedTuple):
    """Loss of a candidate minus that of a baseline on the same rows, by the team's metric.

    Attributes:
        difference: Mean difference: of NLL in nats, of (balanced) accuracy as a share of the rows.
        interval: Its paired interval, at 95 % for all candidates simultaneously.
        detectable: Smallest difference that these rows can detect, at 5 % and with 80 % power.
    """

    difference: float
    interval: Interval
    detectable: float


class ReliabilityPoint(FusionResult):
    """A point of the reliability diagram: mean confidence, accuracy and number of rows of one bin."""

    confidence: float
    accuracy: float
    rows: int


class MatchedVote(FusionResult):
    """The best vote affordable within a candidate's training time.

    Attributes:
        networks: Number of voting networks.
        fuse: Scores on *fuse*.
        test: Scores on *test*; None without *test* rows.
    """

    networks: int
    fuse: Scores
    test: Scores | None = None


class TestResults(FusionResult):
    """Results on *test*; all None or empty without *test* rows.

    Attributes:
        test: The scores.
        interval: Bootstrap interval of the accuracy at 95 %.
        per_class: Accuracy on the rows of each class; None for a class without rows.
        reliability: Points of the reliability diagram, empty bins left out.
        against_single: The gain over the best single member.
        detectable: Smallest accuracy difference from the best single member that these rows can detect.
    """

    __test__ = False  # not a pytest class

    test: Scores | None = None
    interval: Interval | None = None
    per_class: list[float | None] | None = None
    reliability: list[ReliabilityPoint] = Field(default_factory=list)
    against_single: Gain | None = None
    detectable: float | None = None

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the per-class accuracies: every class has the same weight, however few images it has."""
        known = [accuracy for accuracy in self.per_class or () if accuracy is not None]
        return sum(known) / len(known) if known else None


class Comparison(TestResults):
    """Scores, gains and training cost of a candidate, before its inference is measured.

    Attributes:
        fuse: Nested scores on *fuse*.
        temperature: Temperature that calibrates the candidate's probabilities.
        train_seconds: Seconds of all trainings that the candidate needs.
        train_cost: `train_seconds` relative to the mean single member.
        chosen: How a fusion was fitted, in words.
        weights: Weight of each member by name; empty for a fusion without weights.
        matched: The best vote affordable within the same training time.
        holm_p: McNemar's p-value against the best single member, Holm-adjusted over the fusions.
        cost_per_point: Additional trainings per point of test accuracy over the best single member; None without a gain.
    """

    fuse: Scores
    temperature: float
    train_seconds: float
    train_cost: float
    chosen: str = ""
    weights: dict[str, float] = Field(default_factory=dict)
    matched: MatchedVote | None = None
    holm_p: float | None = None
    cost_per_point: float | None = None


class Candidate(Comparison):
    """All results of a candidate: a single member or a fusion.

    Attributes:
        inference_cost: Measured inference time relative to the mean single member.
        inference_ms: Inference time in milliseconds per image, on as many threads as a trainer has.
        inference_ms_all_cores: Inference time in milliseconds per image, on all cores of the machine.
        multiply_adds: Multiply-adds per image; their mean on *fuse* if a fusion skips networks for some rows.
        compute_cost: `multiply_adds` relative to the mean single member.
        money: Price of its training, by kind of machine.
    """

    inference_cost: float
    inference_ms: float = 0.0
    inference_ms_all_cores: float = 0.0
    multiply_adds: float = 0.0
    compute_cost: float = 0.0
    money: dict[str, float] = Field(default_factory=dict)


class Choice(FusionResult):
    """How the recommended candidate was chosen, on *fuse* alone.

    It is the cheapest candidate that is not significantly worse than the one with the best score. Cost is counted in
    multiply-adds of inference, then of training.

    Attributes:
        metric: The metric of the team.
        rows: Number of *fuse* rows.
        is_decided: False if there are too few rows to choose by.
        is_at_chance: Whether no candidate is significantly better than the class frequencies.
        best_score: Name of the candidate with the best score.
        equal: Names of the candidates that are not significantly worse than `best_score`, cheapest first.
        lost: Loss of the recommended candidate minus that of `best_score`.
        next_cheaper: Name of the best candidate that is cheaper than the recommended one; None if none is cheaper.
        worth: Loss of `next_cheaper` minus that of the recommended candidate.
        detectable: Smallest difference between candidates that these rows can detect, by the metric.
        detectable_accuracy: Smallest difference in accuracy that these rows can detect.
    """

    metric: Metric
    rows: int
    is_decided: bool
    is_at_chance: bool
    best_score: str
    equal: list[str]
    lost: LossDifference
    next_cheaper: str | None = None
    worth: LossDifference | None = None
    detectable: float
    detectable_accuracy: float
