"""The record of a checkpoint, stored in its `manifest.json` next to the checksums of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from workers.diagnostics.callback import Epoch
from workers.storage.manifest import Manifest


@dataclass
class Sums:
    """Sums over the steps of an unfinished epoch: the loss, the number of correct answers, and seconds."""

    loss: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0


class CheckpointRecord(Manifest):
    """Progress of a training when its checkpoint was written.

    Attributes:
        version: Format version.
        owner: Unique id of the training: the signature of its first member.
        epoch: Number of finished epochs.
        step: Number of finished steps in the unfinished epoch.
        history: Metrics of each finished epoch.
        micro_batch: Images per forward pass.
        sums: Sums over the steps of the unfinished epoch, one entry per process.
        average: Settings of the weight average in the checkpoint; None if it has none.
    """

    version: Literal[2] = 2
    owner: str = ""
    epoch: int
    step: int = 0
    history: list[Epoch] = Field(default_factory=list)
    micro_batch: int = 0
    sums: list[Sums] = Field(default_factory=list)
    average: dict[str, JsonValue] | None = None

    @property
    def position(self) -> tuple[int, int]:
        """Number of finished epochs and of finished steps in the unfinished epoch; sorts by time."""
        return self.epoch, self.step
