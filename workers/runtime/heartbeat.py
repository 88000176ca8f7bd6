"""Track the progress of a running job, and report it in the trainer's heartbeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.diagnostics.callback import Epoch, TrainingCallback
from workers.diagnostics.memory import memory_state

if TYPE_CHECKING:
    from workers.config.job import JobMember
    from workers.storage.artifacts import MemberArtifact
    from workers.tracking.job_run import JobRun


@dataclass(frozen=True)
class Heartbeat:
    """A trainer's sign of life.

    Attributes:
        pid: Process id of the trainer, on its own machine.
        node: Ray's id of that machine.
        epoch: Number of finished epochs.
        metrics: Metrics of the last epoch.
        notes: Notes for the user so far.
        steps: Number of optimizer steps since the job started.
        published: Names of the members whose artifacts are published, so far.
        is_waiting: Whether the job runs in several processes and none has reported yet.
        is_preparing: Whether the trainer still imports what a training needs.
        kills: Number of processes that the kernel has killed in the trainer's control group for lack of memory.
        age: Seconds since the process sent it: a relayed heartbeat may come from a process that has died since.
    """

    pid: int
    node: str
    epoch: int
    metrics: dict[str, float]
    notes: list[str]
    steps: int
    published: list[str] = field(default_factory=list)
    is_waiting: bool = False
    is_preparing: bool = False
    kills: int = 0
    age: float = 0.0


@dataclass
class JobProgress(TrainingCallback):
    """Follows a training for the live table, forwards its events to the tracking run, and relays stop requests."""

    tracking_run: JobRun | None = None
    epochs_done: int = 0
    metrics: Epoch = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    steps: int = 0
    stop_requested: bool = False

    def on_resume(self, history: Sequence[Epoch]) -> None:
        """Take over the epochs of a checkpoint."""
        if history:
            self.epochs_done, self.metrics = len(history), history[-1]
        if self.tracking_run:
            self.tracking_run.on_resume(history)

    def on_epoch_end(self, epoch: int, metrics: Epoch) -> None:
        """Count an epoch."""
        self.epochs_done, self.metrics = epoch + 1, metrics
        if self.tracking_run:
            self.tracking_run.on_epoch_end(epoch, metrics)

    def on_step_end(self) -> None:
        """Count a step."""
        self.steps += 1

    def on_checkpoint(self) -> None:
        """Report the checkpoint to the tracking run."""
        if self.tracking_run:
            self.tracking_run.on_checkpoint()

    def on_published(self, member: JobMember, artifact: MemberArtifact) -> None:
        """Report the artifact to the tracking run."""
        self.published.append(member.name)
        if self.tracking_run:
            self.tracking_run.on_published(member, artifact)

    def note(self, text: str) -> None:
        """Keep a note."""
        self.notes.append(text)
        if self.tracking_run:
            self.tracking_run.note(text)

    def should_stop(self) -> bool:
        """Return whether a stop was requested."""
        return self.stop_requested

    def heartbeat(self, pid: int, node: str) -> Heartbeat:
        """Return a heartbeat with the current progress."""
        notes, published = list(self.notes), list(self.published)
        kills = memory_state().kills
        return Heartbeat(pid, node, self.epochs_done, self.metrics, notes, self.steps, published, kills=kills)
