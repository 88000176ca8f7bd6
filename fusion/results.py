"""What the fusion step returns, and `fusion.json` holds: scores, gains, costs and diversity of every candidate.

Light to import, so that commands which only read finished sweeps start at once.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]


class FusionResult(BaseModel):
    """Base of all results. Keys of other versions are passed over; what an earlier version did not write has a default."""

    model_config = ConfigDict(frozen=True, extra="ignore", serialize_by_alias=True, validate_by_name=True)


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
        inference_ms: The same in milliseconds per image.
        money: Price of its training, by kind of machine.
    """

    inference_cost: float
    inference_ms: float = 0.0
    money: dict[str, float] = Field(default_factory=dict)


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
    """The accuracy of a vote of so many members: measured, as the mean over subsets, or forecast."""

    members: int
    accuracy: float
    measured: bool


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


class FusionDetails(FusionResult):
    """The content of fusion.json.

    Attributes:
        version: Version of this form.
        recommended: Name of the recommended candidate.
        why: Why it is recommended, in words.
        best_single: Name of the best single member.
        classes: Class names in the order of the probabilities.
        rows: Number of rows of each part: *fit*, *fuse* and *test*.
        candidates: Every single member and every fusion by its name.
        diversity: How differently the members err.
        hardest: The rows that the recommended candidate finds hardest.
        warnings: Sentences on what may be wrong.
        parity: Largest difference between the exported model and the fusion; None where no model was exported.
    """

    version: Literal[1] = 1
    recommended: str
    why: str
    best_single: str
    classes: list[str]
    rows: dict[str, int]
    candidates: dict[str, Candidate]
    diversity: Diversity
    hardest: list[HardRow]
    warnings: list[str]
    parity: float | None = None
