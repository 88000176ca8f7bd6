"""The record of a checkpoint: what its `manifest.json` says beside the checksums of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from workers.diagnostics.callback import Epoch


@dataclass
class Sums:
    """Sums over the steps of an unfinished epoch: the loss, the number of right answers, and seconds."""

    loss: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0


class CheckpointRecord(BaseModel):
    """Where a training was when its checkpoint was written.

    Attributes:
        version: Version of this form.
        owner: What tells the training from others: the signature of its first member.
        epoch: Number of finished epochs.
        step: Number of finished steps of the epoch after them.
        history: Metrics of each finished epoch.
        micro_batch: Images per forward pass.
        sums: What the steps of the unfinished epoch summed up to, of each process.
        average: Settings of the average of the weights that the checkpoint holds; None where it holds none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

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
        """The finished epochs and the finished steps after them; the larger, the later."""
        return self.epoch, self.step
