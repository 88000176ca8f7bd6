"""The record of a finished training for one of its members: what `manifest.json` says beside the checksums."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from workers.config.specs import MemberRecord
from workers.diagnostics.callback import Epoch


class TrainingRecord(BaseModel):
    """What is known of a finished training, for one of the members that it made.

    Attributes:
        version: Version of this form.
        signature: Hash of everything that changes the member's weights.
        member: The recipe, and which of the training's members this is.
        train: What all trainings of the team shared, as JSON.
        fold: The fold that was left out; None for a full training.
        seed: Seed of the member's weights, order of rows and augmentation.
        classes: Class names in the order of the logits.
        data_digest: Digest of the packed data.
        image_size: Side of the images in pixels.
        weights_sha256: Digest of the weights.
        processes: Number of processes that trained together.
        train_seconds: Seconds of all processes that this member alone took: those of a snapshot are of its own cycle.
        history: Metrics of each epoch from the start of the training.
        micro_batch: Images per forward pass.
        precision: "float32" or "bfloat16".
        captured: Whether the steps were taken as one CUDA graph. That changes no weight.
        resumed_from: Number of epochs that a checkpoint brought.
        device: Name of the device.
        threads: Number of threads per process.
        torch: Version of PyTorch.
        python: Version of Python.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[2] = 2
    signature: str
    member: MemberRecord
    train: dict[str, JsonValue]
    fold: int | None
    seed: int
    classes: list[str]
    data_digest: str
    image_size: int
    weights_sha256: str
    processes: int = 1
    train_seconds: float
    history: list[Epoch]
    micro_batch: int
    precision: str
    captured: bool = False
    resumed_from: int
    device: str
    threads: int
    torch: str
    python: str

    @property
    def total_seconds(self) -> float:
        """Seconds of all processes from the start of the training to this member, whatever else the training made on its way."""
        return self.processes * sum(epoch["seconds"] for epoch in self.history)

    @property
    def finished_ms(self) -> int:
        """When the last epoch ended, in milliseconds since 1970."""
        return int(self.history[-1]["time"])
