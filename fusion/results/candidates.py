"""Scores, gains and costs of candidates, and how the recommended candidate was chosen."""

from __future__ import annotations

from typing import Literal, NamedTuple

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
        interval: Its paired score interval at 95 % (Tango 1998).
        p: McNemar's exact p-value.
    """

    difference: float
    interval: Interval
    p: float


class LossDifference(NamedTuple):
    """Loss of a candidate minus that of a baseline on the same rows, by the team's metric.

    Attributes:
        difference: Mean difference: of NLL in nats, of (balanced) accuracy as a share of the rows.
        interval: Its two-sided paired interval, at 95 % for all compared candidates at once.
        upper: Its one-sided upper bound, at 95 % for all compared candidates at once.
    """

    difference: float
    interval: Interval
    upper: float


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
        interval: Wilson interval of the accuracy at 95 %.
        per_class: Accuracy on the rows of each class; None for a class without rows.
        reliability: Points of the reliability diagram, empty bins left out.
        against_single: The gain over the best single member.
        detectable: Smallest accuracy difference from the best single member that these rows can detect.
        loss: Loss by the team's metric: the NLL, or 1 minus it.
        loss_interval: Its interval at 95 %.
    """

    __test__ = False  # not a pytest class

    test: Scores | None = None
    interval: Interval | None = None
    per_class: list[float | None] | None = None
    reliability: list[ReliabilityPoint] = Field(default_factory=list)
    against_single: Gain | None = None
    detectable: float | None = None
    loss: float | None = None
    loss_interval: Interval | None = None

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
        holm_p: The p-value against the best single member, Holm-adjusted over the fusions.
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
        multiply_adds: Multiply-adds per image.
        compute_cost: `multiply_adds` relative to the mean single member.
        networks: Number of networks in the exported file.
        money: Price of its training, by kind of machine.
    """

    inference_cost: float
    inference_ms: float = 0.0
    inference_ms_all_cores: float = 0.0
    multiply_adds: float = 0.0
    compute_cost: float = 0.0
    networks: int = 1
    money: dict[str, float] = Field(default_factory=dict)


class Choice(FusionResult):
    """How the recommended candidate was chosen, on *fuse* alone.

    It is the cheapest candidate shown to be at most `tolerance` worse than the best-scoring one. Cost is counted in multiply-adds
    of inference, then of training.

    Attributes:
        metric: The metric of the team. Its loss is the NLL in nats, or 1 minus an accuracy.
        tolerance: Largest acceptable loss beyond the best.
        rows: Number of rows that the candidates are compared on.
        judged_on: What these are: "fuse" rows or, without such a part, "out-of-fold" rows.
        groups: Number of groups of *fuse* rows; None without groups.
        has_few_rows: Whether there are too few rows or groups for fusions that learn from them.
        is_at_chance: Whether no candidate is significantly better than the class frequencies.
        best_score: Name of the competing candidate with the lowest loss.
        competing: Names of the candidates that could be recommended, the cheapest first.
        cheaper: Names of the undominated candidates that are cheaper than the recommended one, the cheapest first.
        losses: Loss of each candidate.
        behind_best: Loss of each cheaper candidate minus that of `best_score`; bounds hold for all of them at once.
        differences: Loss of each other candidate minus that of the recommended one; intervals hold for all of them at once.
        rows_needed: About how many *fuse* rows would show that a cheaper candidate is good enough, if its loss stays as it is.
            Candidates that are worse by more than the tolerance are left out.
    """

    metric: Metric
    tolerance: float
    rows: int
    judged_on: Literal["fuse", "out-of-fold"] = "fuse"
    groups: int | None = None
    has_few_rows: bool
    is_at_chance: bool
    best_score: str
    competing: list[str]
    cheaper: list[str]
    losses: dict[str, float]
    behind_best: dict[str, LossDifference]
    differences: dict[str, LossDifference]
    rows_needed: dict[str, int]
