"""The record of a trained member, stored in its `manifest.json` next to the checksums."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from workers.config.specs import MemberRecord
from workers.diagnostics.callback import Epoch
from workers.storage.manifest import Manifest


class TrainingRecord(Manifest):
    """Record of a finished training, for one of its members.

    Attributes:
        version: Format version.
        signature: Hash of everything that changes the member's weights.
        member: The recipe, and which of the training's members this is.
        train: Settings shared by all trainings of the team, as JSON.
        fold: The fold that was left out; None for a full training.
        seed: Seed of the member's weights, row order and augmentation.
        classes: Class names in the order of the logits.
        data_digest: Digest of the packed data.
        data_source: Key of the data's source (`source_key`).
        image_size: Side of the images in pixels.
        weights_sha256: Digest of the weights.
        processes: Number of processes that trained together.
        train_seconds: Training seconds of this member alone, over all processes; for a snapshot, of its own cycle.
        history: Metrics of each epoch from the start of the training.
        micro_batch: Images per forward pass.
        precision: "float32" or "bfloat16".
        captured: Whether the steps ran as a CUDA graph, which does not change the weights.
        resumed_from: Number of epochs restored from a checkpoint.
        device: Name of the device.
        threads: Number of threads per process.
        torch: Version of PyTorch.
        python: Version of Python.
    """

    version: Literal[2] = 2
    signature: str
    member: MemberRecord
    train: dict[str, JsonValue]
    fold: int | None
    seed: int
    classes: list[str]
    data_digest: str
    data_source: str
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
        """Seconds of all processes from the start of the training to this member, including earlier members."""
        return self.processes * sum(epoch["seconds"] for epoch in self.history)

    @property
    def finished_ms(self) -> int:
        """End of the last epoch, in milliseconds since 1970."""
        return int(self.history[-1]["time"])
