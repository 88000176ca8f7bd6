"""Results of the fusion step, as stored in `fusion.json`: scores, gains, costs and diversity of every candidate.

Fast to import, so that commands which only read finished sweeps start at once.
"""

from fusion.results.base import METRIC_NAMES, SHARES, TOP, FusionResult, Interval, Metric
from fusion.results.candidates import (
    Candidate,
    Choice,
    Comparison,
    Gain,
    LossDifference,
    MatchedVote,
    ReliabilityPoint,
    Scores,
    TestResults,
)
from fusion.results.details import FusionDetails
from fusion.results.findings import (
    Abstention,
    Answer,
    Contribution,
    Diversity,
    ExpectedGain,
    HardRow,
    NextStep,
    Pair,
    StepKind,
    SuspectLabel,
)

__all__ = [
    "METRIC_NAMES",
    "SHARES",
    "TOP",
    "Abstention",
    "Answer",
    "Candidate",
    "Choice",
    "Comparison",
    "Contribution",
    "Diversity",
    "ExpectedGain",
    "FusionDetails",
    "FusionResult",
    "Gain",
    "HardRow",
    "Interval",
    "LossDifference",
    "MatchedVote",
    "Metric",
    "NextStep",
    "Pair",
    "ReliabilityPoint",
    "Scores",
    "StepKind",
    "SuspectLabel",
    "TestResults",
]
