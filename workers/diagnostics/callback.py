"""The callback of a training: it receives events, and can ask the training to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.config.job import JobMember
    from workers.storage.artifacts import MemberArtifact

Epoch = dict[str, float]  # the metrics of one epoch
HELD_OUT = ("fuse", "out_of_fold")  # rows whose scores are shown after each epoch; the second of a fold, where there is no *fuse*


def held_out_metric(epoch: Epoch, metric: str) -> float | None:
    """Return the loss or the accuracy of an epoch on held-out rows that it shows, or None if it shows none."""
    return next((epoch[key] for name in HELD_OUT if (key := f"{name}/{metric}") in epoch), None)


class TrainingCallback:
    """Follows a training. The methods of this class do nothing; subclasses override what they need."""

    def on_resume(self, history: Sequence[Epoch]) -> None:
        """Called before the first step, with the metrics of the epochs restored from a checkpoint."""

    def on_epoch_end(self, epoch: int, metrics: Epoch) -> None:
        """Called with the metrics of each epoch, counted from 0, once its checkpoint is written."""

    def on_step_end(self) -> None:
        """Called after each optimizer step, as a sign of life."""

    def on_checkpoint(self) -> None:
        """Called after a checkpoint was written."""

    def on_published(self, member: JobMember, artifact: MemberArtifact) -> None:
        """Called for each published member: once its artifact is written, or at once if it existed before."""

    def note(self, text: str) -> None:
        """Called with a message for the user."""

    def should_stop(self) -> bool:
        """Return True to make the training write a checkpoint after its step and raise TrainingStopped."""
        return False
