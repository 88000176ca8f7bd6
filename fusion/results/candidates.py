"""Scores, gains and costs of candidates, and how one of them was chosen."""

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
    """What a candidate gains over another one on the same rows.

    Attributes:
        difference: Difference in accuracy.
        interval: Its paired bootstrap interval at 95 %.
        p: McNemar's exact p-value.
    """

    difference: float
    interval: Interval
    p: float


class LossDifference(NamedTuple):
    """How much more a candidate loses than another one on the same rows, by the team's metric.

    Attributes:
        difference: Mean difference: of NLL in nats, of (balanced) accuracy as a share of the rows.
        interval: Its paired interval, which holds at 95 % for all candidates at once.
        detectable: The smallest difference that so many rows show, at 5 % and with a power of 80 %.
    """

    difference: float
    interval: Interval
    detectable: float


class ReliabilityPoint(FusionResult):
    """A point of the reliability diagram: the mean confidence and the accuracy of so many rows."""

    confidence: float
    accuracy: float
    rows: int


class MatchedVote(FusionResult):
    """The best vote that a candidate's training time would have paid for.

    Attributes:
        networks: Number of voting networks.
        affordable: Number of networks that could have voted.
        fuse: Scores on *fuse*.
        test: Scores on *test*; None where there are no *test* rows.
        gain_over_it: What the candidate gains over the vote on *test*.
    """

    networks: int
    affordable: int
    fuse: Scores
    test: Scores | None = None
    gain_over_it: Gain | None = None


class TestResults(FusionResult):
    """What was measured on *test*; everything is None or empty where there are no *test* rows.

    Attributes:
        test: The scores.
        interval: Bootstrap interval of the accuracy at 95 %.
        per_class: Accuracy on the rows of each class; None for a class without rows.
        reliability: Points of the reliability diagram, empty bins left out.
        against_single: The gain over the best single member.
        against_vote: The gain over the vote, where it is a candidate.
        detectable: The smallest difference in accuracy to the best single member that so many rows can show.
    """

    __test__ = False  # it is none of pytest's

    test: Scores | None = None
    interval: Interval | None = None
    per_class: list[float | None] | None = None
    reliability: list[ReliabilityPoint] = Field(default_factory=list)
    against_single: Gain | None = None
    against_vote: Gain | None = None
    detectable: float | None = None

    @property
    def balanced_accuracy(self) -> float | None:
        """The mean over the classes of the accuracy on their rows: every class counts alike, however few images it has."""
        known = [accuracy for accuracy in self.per_class or () if accuracy is not None]
        return sum(known) / len(known) if known else None


class Comparison(TestResults):
    """A candidate beside all others, before its inference was measured.

    Attributes:
        fuse: Nested scores on *fuse*.
        temperature: Temperature that the candidate's probabilities were calibrated by.
        train_seconds: Training seconds that had to be paid for it.
        train_cost: The same in trainings of the mean single member.
        chosen: How a fusion was fitted, in words.
        weights: Weight of each member by its name, where the fusion has weights.
        asked: Mean number of networks that a row takes, where that differs from row to row.
        matched: The best vote that the same training time would have paid for.
        holm_p: McNemar's p-value against the best single member, Holm-adjusted over the fusions.
        cost_per_point: Trainings per point of test accuracy gained over the best single member; None where nothing is gained.
    """

    fuse: Scores
    temperature: float
    train_seconds: float
    train_cost: float
    chosen: str = ""
    weights: dict[str, float] = Field(default_factory=dict)
    asked: float | None = None
    matched: MatchedVote | None = None
    holm_p: float | None = None
    cost_per_point: float | None = None


class Candidate(Comparison):
    """A single member or a fusion, with all that is known of it.

    Attributes:
        inference_cost: Measured time of an inference, in inferences of the mean single member.
        inference_ms: The same in milliseconds per image, on as many threads as a trainer has.
        inference_ms_all_cores: The same on all cores of the machine.
        multiply_adds: Those of an image; where a fusion asks fewer networks for some rows, their mean on *fuse*.
        compute_cost: The same in inferences of the mean single member.
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

    The candidate with the best score comes first, and then the cheapest one that is not surely worse: cheaper by multiply-adds
    of inference, and then by those of training.

    Attributes:
        metric: The metric of the team.
        rows: Number of *fuse* rows.
        is_decided: False where the rows are too few to choose by.
        is_at_chance: Whether no candidate is surely better than knowing how frequent each class is.
        best_score: Name of the candidate with the best score.
        equal: Names of those that are not surely worse than that one, the cheapest first.
        lost: How much more the recommended candidate loses than the best score.
        next_cheaper: Name of the best candidate that is cheaper than the recommended one; None where none is cheaper.
        worth: How much more that one loses than the recommended one.
        detectable: The smallest difference between candidates that so many rows can show, by the metric.
        detectable_accuracy: The same in accuracy.
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
