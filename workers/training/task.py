"""The inputs and the result of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.config.specs import MemberSpec, TrainedMember, TrainSpec
from workers.diagnostics.callback import HELD_OUT, Epoch, TrainingCallback
from workers.models.network import Network
from workers.storage.checkpoints import Checkpoints
from workers.training.collectives import SINGLE_PROCESS, SingleProcess
from workers.training.distillation import Teacher


@dataclass(frozen=True)
class TrainingData:
    """The rows that a training reads.

    Attributes:
        images: (N, H, W, 3) uint8, the images of the whole data set; for a frozen backbone (N, V, D) float32, the features of
            V views of each image.
        labels: (N,) int64, their labels.
        fit: (n,) row numbers to train on.
        watch: Row numbers whose loss and accuracy are reported after each epoch, or None.
        sampling: (N,) how likely an epoch draws each row, with replacement; None for each `fit` row once.
        watched_as: Prefix of these metrics, one of `HELD_OUT`.
        stop: Row numbers for early stopping or for scoring a search's trial; or None.
        teacher: The teacher of a student, or None.
        weights: (N,) float32, each row's loss weight, with a mean of 1 over `fit`; None for equal weights.
    """

    images: Tensor
    labels: Tensor
    fit: Tensor
    watch: Tensor | None
    stop: Tensor | None = None
    teacher: Teacher | None = None
    weights: Tensor | None = None
    sampling: Tensor | None = None
    watched_as: str = HELD_OUT[0]


@dataclass(frozen=True)
class TrainingTask:
    """Data, recipe and settings of one training.

    Attributes:
        data: The rows.
        recipe: The recipe, with the seeds of this training.
        spec: Settings shared by all trainings of the team.
        members: The missing members, in the order in which the training makes them.
        device: Device to train on.
        checkpoints: The checkpoints on disk; None to keep none.
        callback: Follows the training.
        checkpoint_seconds: Longest time without a checkpoint.
        group: The processes that train together.
    """

    data: TrainingData
    recipe: MemberSpec
    spec: TrainSpec
    members: tuple[TrainedMember, ...]
    device: torch.device
    checkpoints: Checkpoints | None = None
    callback: TrainingCallback = field(default_factory=TrainingCallback)
    checkpoint_seconds: float = 300.0
    group: SingleProcess = SINGLE_PROCESS


@dataclass
class TrainingResult:
    """A trained member: its network with the final weights, and how it was trained.

    Attributes:
        network: The trained network.
        history: Metrics of each epoch from the start of the training.
        micro_batch: Images per forward pass.
        precision: "float32" or "bfloat16".
        resumed_from: Number of epochs restored from a checkpoint.
        captured: Whether the steps ran as a CUDA graph.
    """

    network: Network
    history: list[Epoch]
    micro_batch: int
    precision: str
    resumed_from: int
    captured: bool = False

    def seconds(self, first: int = 0) -> float:
        """Return the training seconds from epoch `first` on, without evaluation, including time before interruptions."""
        return sum(epoch["seconds"] for epoch in self.history[first:])


Publish = Callable[[TrainedMember, TrainingResult], None]
