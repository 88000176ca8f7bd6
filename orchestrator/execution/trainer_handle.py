"""A trainer actor as the driver sees it: its job, its state and its heartbeats."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.machines import Shape
from orchestrator.config.settings import HeartbeatSpec
from orchestrator.execution.executor import Event
from workers.config.job import Job
from workers.runtime.heartbeat import Heartbeat

if TYPE_CHECKING:
    from workers.runtime.actor import JobLocalizer

WAITING_NOTE_SECONDS = 20.0  # after which a note says that a job waits
NO_HEARTBEAT = Heartbeat(pid=0, node="", epoch=0, metrics={}, notes=[], steps=-1)


@dataclass
class Assignment:
    """A job assigned to a trainer.

    Attributes:
        job: The job.
        tracking: URI of the tracking store, and run ids of the job's members.
        result: Ray's reference to the job's result, or to the probe of a dead trainer's machine.
        submitted_at: Time of the assignment, by time.monotonic().
        pending_heartbeat: Ray's reference to the requested heartbeat.
        heartbeat: The last heartbeat.
        answered_at: Time of the last heartbeat.
        stepped_at: Time of the last heartbeat with a new training step.
        preparing: The first heartbeat of a trainer that imports what a training needs; None before and after.
        preparing_since: Time of that heartbeat.
        has_waited: Whether the note that the job waits was shown.
    """

    job: Job
    tracking: tuple[str | None, tuple[str, ...]]
    result: Any
    submitted_at: float = field(default_factory=time.monotonic)
    pending_heartbeat: Any = None
    heartbeat: Heartbeat | None = None
    answered_at: float = 0.0
    stepped_at: float = 0.0
    preparing: Heartbeat | None = None
    preparing_since: float = 0.0
    has_waited: bool = False

    def note_preparation(self, heartbeat: Heartbeat) -> None:
        """Note when the trainer began to prepare, or that it has."""
        if not heartbeat.is_preparing:
            self.preparing = None
        elif self.preparing is None:
            self.preparing, self.preparing_since = heartbeat, time.monotonic()

    def take_heartbeat(self, heartbeat: Heartbeat) -> list[Event]:
        """Store a heartbeat, and return events for what is new in it."""
        events = [] if self.heartbeat else [Event(self.job, "working")]
        before, self.heartbeat = self.heartbeat or NO_HEARTBEAT, heartbeat
        self.answered_at = time.monotonic() - heartbeat.age
        if heartbeat.steps > before.steps:
            self.stepped_at = self.answered_at
        if heartbeat.epoch > before.epoch:
            events.append(Event(self.job, "epoch", heartbeat.epoch, heartbeat.metrics))
        events += [Event(self.job, "note", text=text) for text in heartbeat.notes[len(before.notes) :]]
        events += [Event(self.job, "published", text=name) for name in heartbeat.published[len(before.published) :]]
        return events

    def waiting_note(self, size: object) -> list[Event]:
        """Return a note, once, if the job has long waited for a machine with room for `size`."""
        waited = time.monotonic() - self.submitted_at
        has_machine = self.heartbeat is not None or self.preparing is not None
        if has_machine or self.has_waited or waited <= WAITING_NOTE_SECONDS:
            return []
        self.has_waited = True
        return [Event(self.job, "note", text=f"waits for a machine with room for {size}")]

    def why_hung(self, limits: HeartbeatSpec) -> str | None:
        """Return the reason that the trainer counts as hung, or None. Before its first heartbeat it may be waiting."""
        now = time.monotonic()
        if self.preparing is not None and now - self.preparing_since > limits.stall_minutes * 60:
            return f"hung: its imports took more than {limits.stall_minutes:g} minutes"
        if self.heartbeat is None:
            return None
        if now - self.answered_at > limits.seconds:
            return f"hung: no sign of life for {limits.seconds:g} s"
        if now - self.stepped_at > limits.stall_minutes * 60:
            return f"hung: no step finished for {limits.stall_minutes:g} minutes"
        return None


@dataclass
class TrainerHandle:
    """A trainer actor.

    Attributes:
        actor: Ray's handle.
        shape: Its resources.
        assignment: The current job; None if idle.
        node: Ray's id of its machine; empty before the first heartbeat.
        is_leaving: Whether it is writing a checkpoint before it exits, because its machine is being taken away.
        death_text: Ray's error if the trainer died; its machine is then being probed.
    """

    actor: Any
    shape: Shape
    assignment: Assignment | None = None
    node: str = ""
    is_leaving: bool = False
    death_text: str = ""

    @property
    def is_idle(self) -> bool:
        """True if the trainer has no job."""
        return self.assignment is None

    def assign(self, job: Job, tracking: tuple[str | None, tuple[str, ...]], localizer: JobLocalizer) -> None:
        """Start a job in this trainer."""
        result = self.actor.run.remote(job, *tracking, localizer, self.shape.gpus)
        self.assignment, self.is_leaving = Assignment(job, tracking, result), False
