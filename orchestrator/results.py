"""What a sweep leaves behind for later commands and for scripts: its summary (summary.json) and its state (sweep.json)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fusion.results import Metric
from workers.data.summary import DataSummary

State = Literal["done", "partial", "failed", "interrupted"]


class Headline(BaseModel):
    """The two scores on *test* that everything shows: accuracy (0 to 1), and NLL in nats."""

    model_config = ConfigDict(frozen=True)

    accuracy: float
    nll: float


class MemberState(BaseModel):
    """What became of one member.

    Attributes:
        seed: Its seed.
        test: Its scores on *test*; None where it was not fused or there are no *test* rows.
        log: Name of its log.
        state: "done", "pending", or how its training failed.
        reason: Why it is not done, or why stacks go without it.
        train_seconds: Seconds that its training took; None where it is not done.
        weights_sha256: Digest of its weights; None where it is not done.
    """

    model_config = ConfigDict(frozen=True)

    seed: int
    test: Headline | None = None
    log: str = ""
    state: str
    reason: str | None = None
    train_seconds: float | None = None
    weights_sha256: str | None = None

    @property
    def is_done(self) -> bool:
        """True if its full training is done."""
        return self.state == "done"


class FusionSummary(BaseModel):
    """A fusion in the summary: its scores on *test*, and its costs in trainings and inferences of the mean single member.

    Attributes:
        test: Its scores on *test*; None where there are no *test* rows.
        train_cost: Training seconds that had to be paid for it, in those of the mean single member.
        inference_cost: Measured time of an inference, in those of the mean single member.
        inference_ms_all_cores: Measured milliseconds per image on all cores.
        compute_cost: Multiply-adds of an inference, in those of the mean single member.
    """

    model_config = ConfigDict(frozen=True)

    test: Headline | None
    train_cost: float
    inference_cost: float
    inference_ms_all_cores: float = 0.0
    compute_cost: float = 0.0


class SweepSummary(BaseModel):
    """The content of summary.json, and what `conclave sweep --json` prints. It may grow; nothing in it is renamed.

    Attributes:
        version: Version of this form.
        sweep: Name of the sweep.
        state: How it ended.
        trained: Number of trainings that this run did.
        reused: Number of trainings that were done before.
        members: State of each member.
        student: State of the student; None where the team asks for none.
        fusions: Every fusion that was fitted.
        recommended: Name of the recommended candidate; None where nothing was fused.
        model: Path of the exported model; None where there is none.
        classes: Class names in the order of the model's probabilities.
        tracking_uri: The tracking store.
        parent_run_id: The sweep's run there.
        unsent: Number of entries that the tracking store has yet to get.
        data: What the data set is like; None for a sweep that was interrupted early.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[1] = 1
    sweep: str
    state: State
    trained: int
    reused: int
    members: dict[str, MemberState]
    student: MemberState | None = None
    fusions: dict[str, FusionSummary]
    recommended: str | None
    model: str | None
    classes: list[str]
    tracking_uri: str
    parent_run_id: str
    unsent: int = 0
    data: DataSummary | None = None

    @property
    def tested(self) -> dict[str, Headline]:
        """The scores on *test* of every candidate that has them."""
        return {name: row.test for name, row in self.candidates.items() if row.test}

    @property
    def candidates(self) -> dict[str, MemberState | FusionSummary]:
        """Members and fusions."""
        return {**self.members, **self.fusions}


class Fingerprint(BaseModel):
    """What a finished sweep's results rest on: where it is the same, there is nothing to do.

    Attributes:
        jobs: Signature of each training, by its label.
        fusion: Names of the fusions.
        quorum: Number of members that have to be done.
        metric: What fusions are judged by.
        prices: Price of one trainer for an hour, by kind of machine.
    """

    model_config = ConfigDict(frozen=True)

    jobs: dict[str, str]
    fusion: list[str]
    quorum: int
    metric: Metric
    prices: dict[str, float] = Field(default_factory=dict)


class SweepState(BaseModel):
    """The content of sweep.json: what a rerun goes on from.

    Attributes:
        version: Version of this form.
        team: Name of the team.
        team_file: Path of the team file that was swept.
        data: Folder or archive of the data; None for a data set that is downloaded.
        store: Name of the folder of the packed data.
        tracking_uri: The tracking store.
        experiment_id: Its experiment.
        parent_run_id: The sweep's own run.
        runs: Ids of the runs of its trainings, by signature.
        members: Signatures of each member's trainings, the full one first.
        fingerprint: What the finished results rest on; None while the sweep is under way, or where it did not end.
        settings: The settings that the results rest on, flat, to tell people what changed between two runs.
        results: SHA-256 of the model, the report and the outputs, by name; empty until the sweep is done.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[2] = 2
    team: str
    team_file: str
    data: str | None = None
    store: str
    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    runs: dict[str, str]
    members: dict[str, list[str]]
    fingerprint: Fingerprint | None = None
    settings: dict[str, str] = Field(default_factory=dict)
    results: dict[str, str] = Field(default_factory=dict)
