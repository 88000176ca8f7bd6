"""What is found out of a team beside the scores of its candidates: diversity, shares, hard and suspect images."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from fusion.results.base import FusionResult, Interval, Metric

StepKind = Literal["member", "flips"]


class Pair(FusionResult):
    """Two members on the same rows.

    Attributes:
        first: Name of a member.
        second: Name of the other member.
        disagreement: Share of rows that just one of the two gets right.
        double_fault: Share of rows that both get wrong.
        error_correlation: Pearson's correlation of being wrong; 0 where one member is never or always wrong.
        q: Yule's Q; 0 where it is 0/0.
    """

    first: str
    second: str
    disagreement: float
    double_fault: float
    error_correlation: float
    q: float


class ForecastPoint(FusionResult):
    """The accuracy of a vote of so many members: measured, as the mean over subsets, or forecast, with an interval."""

    members: int
    accuracy: float
    measured: bool
    interval: Interval | None = None


class Diversity(FusionResult):
    """How differently members err, on rows that none of them trained on.

    Attributes:
        confusion: Counts (C, C) of each member: rows are true classes, columns are guesses.
        pairs: Every two members.
        oracle: Share of rows that at least one member gets right.
        disagreement_over_error: Mean disagreement divided by the mean error.
        forecast: Accuracy of votes of more and more such members.
        verdict: What fusing can gain here, in words.
    """

    confusion: dict[str, list[list[int]]]
    pairs: list[Pair]
    oracle: float
    disagreement_over_error: float
    forecast: list[ForecastPoint]
    verdict: str


class Contribution(FusionResult):
    """What a member brings to the vote: its share of what the vote gains over the mean member (its Shapley value).

    Attributes:
        accuracy: In accuracy; points are 100 times as many.
        accuracy_interval: Its bootstrap interval at 95 %.
        nll: In nats per row; above 0 it makes the vote better.
        nll_interval: Its bootstrap interval at 95 %.
        money: Price of the member's training, by kind of machine.
    """

    accuracy: float
    accuracy_interval: Interval
    nll: float
    nll_interval: Interval
    money: dict[str, float] = Field(default_factory=dict)


class ExpectedGain(NamedTuple):
    """Expected gain of the vote on new rows; above 0 it gets better.

    Attributes:
        mean: In accuracy or in nats.
        interval: Its interval at 95 %.
    """

    mean: float
    interval: Interval


class NextStep(FusionResult):
    """A step that may make the vote better, with its expected gain and its costs.

    Attributes:
        kind: "member" for another training like those of the team, "flips" for mirror images beside the images.
        accuracy: Expected gain in accuracy.
        nll: Expected gain in nats per row.
        train_seconds: Training seconds that the step takes.
        compute_cost: Multiply-adds of an image afterwards, in those of the vote now.
        money: Price of the training, by kind of machine.
        basis: How the gain is known, in words.
    """

    kind: StepKind
    accuracy: ExpectedGain
    nll: ExpectedGain
    train_seconds: float
    compute_cost: float
    money: dict[str, float] = Field(default_factory=dict)
    basis: str

    def gain(self, metric: Metric) -> ExpectedGain:
        """Return the expected gain by a metric."""
        return self.nll if metric == "nll" else self.accuracy


class Answer(FusionResult):
    """What a candidate says of an image: its class, and the probability of that class."""

    class_name: str = Field(alias="class")
    probability: float


class HardRow(FusionResult):
    """A row that the recommended candidate finds hard.

    Attributes:
        row: Number of the row in the packed data.
        label: Name of its class.
        fused: The candidate's answer.
        members: The answer of each member.
    """

    row: int
    label: str
    fused: Answer
    members: dict[str, Answer]


class SuspectLabel(FusionResult):
    """An image that members take for another class than its label. None of them trained on it.

    Attributes:
        row: Number of the row in the packed data.
        part: Where the row is: "fit", "fuse" or "test".
        label: Name of the class that it is said to be of.
        guess: The class that it is more probably of, with its probability.
        of_label: Probability of the label.
        wrong: Probability that the label is wrong.
    """

    row: int
    part: str
    label: str
    guess: Answer
    of_label: float
    wrong: float

    @property
    def is_probable(self) -> bool:
        """Whether the label is more probably wrong than right."""
        return self.wrong > 0.5


class Abstention(FusionResult):
    """What the recommended candidate's prediction sets come to.

    Attributes:
        coverage: Share of new rows whose class is to be in the set, at least.
        level: The level of the sets, from nested predictions on *fuse*.
        on_test: Share of *test* rows whose class is in the set; None without *test* rows.
        mean_size: Mean number of classes in a set, on *test* or, without it, on *fuse*.
        certain: Share of rows whose set is one class alone.
    """

    coverage: float
    level: float
    on_test: float | None
    mean_size: float
    certain: float
