"""Findings about a team: diversity, contributions, next steps, hard images, suspect labels and abstention."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from fusion.results.base import FusionResult, Interval, Metric

StepKind = Literal["member", "flips"]


class Pair(FusionResult):
    """Comparison of two members on the same rows.

    Attributes:
        first: Name of a member.
        second: Name of the other member.
        disagreement: Share of rows that exactly one of the two members gets right.
        double_fault: Share of rows that both get wrong.
        error_correlation: Pearson correlation of the members' errors; 0 if a member is never or always wrong.
        q: Yule's Q; 0 if it is 0/0.
    """

    first: str
    second: str
    disagreement: float
    double_fault: float
    error_correlation: float
    q: float


class Diversity(FusionResult):
    """How differently members err, on rows that none of them trained on.

    Attributes:
        confusion: Counts (C, C) of each member: rows are true classes, columns are predicted classes.
        pairs: Every pair of members.
        oracle: Share of rows that at least one member gets right.
        disagreement_over_error: Mean disagreement divided by the mean error.
        vote_accuracy: Mean accuracy of the votes of 1, 2 and so on of the members.
        verdict: What fusing can gain here, in words.
    """

    confusion: dict[str, list[list[int]]]
    pairs: list[Pair]
    oracle: float
    disagreement_over_error: float
    vote_accuracy: list[float]
    verdict: str


class Contribution(FusionResult):
    """A member's share of the vote's gain over the mean member (its Shapley value).

    Attributes:
        accuracy: Share in accuracy; 0.01 is one point.
        accuracy_interval: Its t interval at 95 %.
        nll: Share in nats per row; positive if the member improves the vote.
        nll_interval: Its t interval at 95 %.
        money: Price of the member's training, by kind of machine.
    """

    accuracy: float
    accuracy_interval: Interval
    nll: float
    nll_interval: Interval
    money: dict[str, float] = Field(default_factory=dict)


class ExpectedGain(NamedTuple):
    """Expected gain of the vote on new rows; positive if the vote improves.

    Attributes:
        mean: In accuracy or in nats.
        interval: Its interval at 95 %.
    """

    mean: float
    interval: Interval


class NextStep(FusionResult):
    """A step that may improve the vote, with its expected gain and its costs.

    Attributes:
        kind: "member" for another training like those of the team, "flips" to average over mirror images.
        accuracy: Expected gain in accuracy.
        nll: Expected gain in nats per row.
        train_seconds: Training seconds that the step takes.
        compute_cost: Multiply-adds per image after the step, relative to the current vote.
        money: Price of the training, by kind of machine.
        basis: How the gain was estimated, in words.
    """

    kind: StepKind
    accuracy: ExpectedGain
    nll: ExpectedGain
    train_seconds: float
    compute_cost: float
    money: dict[str, float] = Field(default_factory=dict)
    basis: str

    def gain(self, metric: Metric) -> ExpectedGain:
        """Return the expected gain by a metric: in accuracy for accuracies, else in NLL."""
        return self.accuracy if metric in ("accuracy", "balanced_accuracy") else self.nll


class Answer(FusionResult):
    """A candidate's prediction for an image: the class and its probability."""

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
    """An image whose label differs from the prediction of members that did not train on it.

    Attributes:
        row: Number of the row in the packed data.
        part: Part that the row belongs to: "fit", "fuse" or "test".
        label: Name of the labelled class.
        guess: The predicted class, with its probability.
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
    """Coverage and size of the recommended candidate's prediction sets.

    Attributes:
        coverage: Target for the share of new rows whose class is in the set, at least.
        level: The level of the sets, from nested predictions on *fuse*.
        on_test: Share of *test* rows whose class is in the set; None without *test* rows.
        mean_size: Mean number of classes in a set, on *test* or, without it, on *fuse*.
        certain: Share of rows whose set holds a single class.
    """

    coverage: float
    level: float
    on_test: float | None
    mean_size: float
    certain: float
