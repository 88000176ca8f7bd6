"""A trainer actor as the driver sees it: which job it has, in which state it is, and what its heartbeats say."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.machines import Shape
from orchestrator.config.settings import HeartbeatSpec
from orchestrator.execution.executor import Event
from workers.config.job import Job

if TYPE_CHECKING:
    from workers.runtime.actor import Placement
    from workers.runtime.heartbeat import Heartbeat

WAITING_NOTE_SECONDS = 20.0  # after which people are told that a job waits


class TrainerState(Enum):
    """What a trainer is doing."""

    IDLE = "has no job"
    SUBMITTED = "has a job, and gave no heartbeat for it: it may wait for a machine"
    WORKING = "works on its job"
    LEAVING = "was told to write a checkpoint and end, because its machine is being taken away"
    DEAD = "died; its machine is being asked whether it lives"


@dataclass
class Assignment:
    """A job that was given to a trainer.

    Attributes:
        job: The job.
        tracking: The tracking store, and the runs of the job's members in it.
        result: Ray's reference to the job's result.
        submitted_at: When it was given, as a time.monotonic().
        pending_heartbeat: Ray's reference to the heartbeat that the trainer was asked for.
        heartbeat: The last heartbeat.
        answered_at: When that came.
        stepped_at: When the last step was seen.
        notes_shown: Number of the heartbeats' notes that were shown.
        published_shown: Number of the published members that were shown.
        has_waited: Whether people were told that the job waits.
    """

    job: Job
    tracking: tuple[str | None, tuple[str, ...]]
    result: Any
    submitted_at: float = field(default_factory=time.monotonic)
    pending_heartbeat: Any = None
    heartbeat: Heartbeat | None = None
    answered_at: float = 0.0
    stepped_at: float = 0.0
    notes_shown: int = 0
    published_shown: int = 0
    has_waited: bool = False

    def take_heartbeat(self, heartbeat: Heartbeat) -> list[Event]:
        """Remember a heartbeat, and return what is new in it."""
        before, self.heartbeat = self.heartbeat, heartbeat
        self.answered_at = time.monotonic() - heartbeat.age
        events = [Event(self.job, "working")] if before is None else []
        if before is None or heartbeat.steps > before.steps:
            self.stepped_at = self.answered_at
        if heartbeat.epoch > (before.epoch if before else 0):
            events.append(Event(self.job, "epoch", heartbeat.epoch, heartbeat.metrics))
        events += [Event(self.job, "note", text=text) for text in heartbeat.notes[self.notes_shown :]]
        events += [Event(self.job, "published", text=name) for name in heartbeat.published[self.published_shown :]]
        self.notes_shown, self.published_shown = len(heartbeat.notes), len(heartbeat.published)
        return events

    def waiting_note(self, size: object) -> list[Event]:
        """Return an event once the job has waited for some time for a machine with room for `size`."""
        waited = time.monotonic() - self.submitted_at
        if self.heartbeat is not None or self.has_waited or waited <= WAITING_NOTE_SECONDS:
            return []
        self.has_waited = True
        return [Event(self.job, "note", text=f"waits for a machine with room for {size}")]

    def why_hung(self, limits: HeartbeatSpec) -> str | None:
        """Return why the trainer counts as hung, or None. Before its first heartbeat it may still wait for a machine."""
        now = time.monotonic()
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
        shape: What it has.
        state: What it is doing.
        assignment: The job at hand; None where it is idle.
        node: Ray's id of its machine, once it gave a heartbeat.
        death_text: What Ray said of its death.
        death_answer: Ray's reference to what its machine was asked after its death.
    """

    actor: Any
    shape: Shape
    state: TrainerState = TrainerState.IDLE
    assignment: Assignment | None = None
    node: str = ""
    death_text: str = ""
    death_answer: Any = None

    @property
    def is_idle(self) -> bool:
        """True if it has no job."""
        return self.assignment is None

    def assign(self, job: Job, tracking: tuple[str | None, tuple[str, ...]], placement: Placement) -> None:
        """Give it a job."""
        result = self.actor.run.remote(job, *tracking, placement)
        self.assignment, self.state = Assignment(job, tracking, result), TrainerState.SUBMITTED

    def release(self) -> None:
        """Take its job away, because the job has ended."""
        self.assignment, self.state = None, TrainerState.IDLE

    def take_heartbeat(self, heartbeat: Heartbeat) -> list[Event]:
        """Remember a heartbeat for the job at hand, and return what is new in it."""
        assert self.assignment
        self.node = heartbeat.node
        if self.state is TrainerState.SUBMITTED:
            self.state = TrainerState.WORKING
        return self.assignment.take_heartbeat(heartbeat)

    def leave(self) -> None:
        """Tell it to write a checkpoint and end."""
        if self.state is not TrainerState.LEAVING:
            self.state = TrainerState.LEAVING
            self.actor.stop.remote()

    def mark_dead(self, text: str, answer: Any) -> None:
        """Remember its death, while it is not clear whether its machine is gone too."""
        self.state, self.death_text, self.death_answer = TrainerState.DEAD, text, answer
