"""The content of fusion.json."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fusion.results.base import FusionResult
from fusion.results.candidates import Candidate, Choice
from fusion.results.findings import Abstention, Contribution, Diversity, HardRow, NextStep, SuspectLabel


class FusionDetails(FusionResult):
    """The content of fusion.json.

    Attributes:
        version: Version of this format.
        recommended: Name of the recommended candidate.
        choice: How it was chosen.
        best_single: Name of the best single member.
        classes: Class names in the order of the probabilities.
        rows: Number of rows of each part: *fit*, *fuse* and *test*.
        candidates: Every single member and every fusion by its name.
        diversity: How differently the members err.
        contributions: Contribution of each member to the vote; empty without a vote.
        next_steps: Suggested next steps, the most promising first; empty without a vote.
        hardest: The rows that the recommended candidate finds hardest.
        suspects: The most suspect labels.
        suspected: Number of labels that are probably wrong.
        abstention: Coverage and size of the prediction sets.
        warnings: Warnings, as sentences.
        parity: Largest difference between the exported model and the fusion; None if no model was exported.
        seconds: Seconds of each step of fusing.
    """

    version: Literal[1] = 1
    recommended: str
    choice: Choice
    best_single: str
    classes: list[str]
    rows: dict[str, int]
    candidates: dict[str, Candidate]
    diversity: Diversity
    contributions: dict[str, Contribution] = Field(default_factory=dict)
    next_steps: list[NextStep] = Field(default_factory=list)
    hardest: list[HardRow]
    suspects: list[SuspectLabel] = Field(default_factory=list)
    suspected: int
    abstention: Abstention
    warnings: list[str]
    parity: float | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
