"""Records of a sweep for later commands and scripts: its summary (summary.json) and its state (sweep.json)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fusion.results import Metric
from workers.data.summary import DataSummary

State = Literal["done", "partial", "failed", "interrupted"]


class Headline(BaseModel):
    """The two headline *test* scores: accuracy (0 to 1) and NLL in nats."""

    model_config = ConfigDict(frozen=True)

    accuracy: float
    nll: float


class Spending(BaseModel):
    """What all runs of a sweep spent, for its budget (spending.json).

    Attributes:
        trainer_seconds: Seconds of all trainers, failed attempts included, without those of searches.
        run_seconds: Seconds of the runs by the clock.
    """

    model_config = ConfigDict(frozen=True)

    trainer_seconds: float = 0.0
    run_seconds: float = 0.0


class MemberState(BaseModel):
    """The state of one member.

    Attributes:
        seed: Its seed.
        test: Its *test* scores; None if it was not fused or there are no *test* rows.
        log: Name of its log.
        state: "done", "pending", or how its training failed.
        reason: Why it is not done, or why stacks leave it out.
        train_seconds: Training time in seconds; None if it is not done.
        weights_sha256: Digest of its weights; None if it is not done.
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
    """A fusion in the summary: its *test* scores, and its costs relative to the mean single member.

    Attributes:
        test: Its *test* scores; None if there are no *test* rows.
        train_cost: Seconds of all trainings it needs, relative to the mean single member.
        inference_cost: Measured inference time, relative to the mean single member.
        inference_ms_all_cores: Measured milliseconds per image on all cores.
        compute_cost: Multiply-adds of an inference, relative to the mean single member.
    """

    model_config = ConfigDict(frozen=True)

    test: Headline | None
    train_cost: float
    inference_cost: float
    inference_ms_all_cores: float = 0.0
    compute_cost: float = 0.0


class SweepSummary(BaseModel):
    """The content of summary.json and of `conclave sweep --json`. Fields may be added but are never renamed.

    Attributes:
        version: Format version.
        sweep: Name of the sweep.
        state: How it ended.
        trained: Number of trainings done by this run.
        reused: Number of trainings reused from earlier runs.
        members: State of each member.
        student: State of the student; None if the team has no student.
        fusions: Every fitted fusion.
        recommended: Name of the recommended candidate; None if nothing was fused.
        model: Path of the exported model; None if nothing was exported.
        classes: Class names in the order of the model's probabilities.
        tracking_uri: The tracking store.
        parent_run_id: Id of the sweep's run in that store.
        unsent: Number of entries not yet sent to the tracking store.
        unsent_because: What the store said to them; "" if it was not asked for all.
        data: Summary of the data set; None if the sweep was interrupted early.
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
    unsent_because: str = ""
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
    """The inputs of a finished sweep's results. If they are unchanged, there is nothing to do.

    Attributes:
        jobs: Signature of each training, by its label.
        fusion: Names of the fusions.
        quorum: Minimum number of finished members.
        metric: Metric by which fusions are judged.
        data: Digest of the packed data and of its split.
        tolerance: Acceptable loss of a cheaper candidate; None for the metric's default.
        prices: Price per trainer-hour, by kind of machine.
    """

    model_config = ConfigDict(frozen=True)

    jobs: dict[str, str]
    fusion: list[str]
    quorum: int
    metric: Metric
    data: str
    tolerance: float | None = None
    prices: dict[str, float] = Field(default_factory=dict)


class SweepState(BaseModel):
    """The content of sweep.json: the state from which a rerun continues.

    Attributes:
        version: Format version.
        team: Name of the team.
        team_file: Path of the team file.
        data: Folder or archive of the data; None for a downloaded data set.
        store: Folder name of the packed data.
        tracking_uri: The tracking store.
        experiment_id: Id of the sweep's experiment.
        parent_run_id: Id of the sweep's run.
        runs: Run ids of its trainings, by signature.
        members: Signatures of each member's trainings, the full one first.
        fingerprint: Inputs of the finished results; None if the sweep is in progress or did not end.
        settings: The settings behind the results, flattened, to report changes between two runs.
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
