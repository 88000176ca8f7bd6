"""Watch the busy trainers: request heartbeats, and decide the outcome of each job."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from orchestrator.config.settings import HeartbeatSpec
from orchestrator.execution.executor import Event
from orchestrator.execution.job_outcomes import Cause, Outcome, outcome_of_death, outcome_of_result
from orchestrator.execution.trainer_handle import Assignment, TrainerHandle
from orchestrator.execution.trainer_pool import TrainerPool, kill_process, untyped
from workers.errors import EnvironmentMismatchError, FailureKind, first_line, last_line

CANT_START = "error raised in its creation task"  # Ray's words, before a traceback


@dataclass
class Supervisor:
    """Reports the events and outcomes of the jobs of a pool's trainers.

    Attributes:
        pool: The trainers.
        heartbeat: When a trainer counts as hung.
    """

    pool: TrainerPool
    heartbeat: HeartbeatSpec = field(default_factory=HeartbeatSpec)

    def __post_init__(self) -> None:
        self.connection, self.machines = self.pool.connection, self.pool.machines
        self.ray = self.connection.ray

    def poll_trainer(self, trainer: TrainerHandle, assignment: Assignment) -> list[Event | Outcome]:
        """Return the events of a trainer's job since the last call, followed by its outcome if it has ended."""
        events = self._progress(trainer, assignment)
        outcome = self._outcome(trainer, assignment)
        return [*events, *self._last_events(assignment, outcome), outcome] if outcome else [*events]

    def _progress(self, trainer: TrainerHandle, assignment: Assignment) -> list[Event]:
        """Return events from the trainer's last heartbeat, and request the next heartbeat without waiting for it."""
        events = assignment.waiting_note(trainer.shape.size)
        if assignment.pending_heartbeat is not None and self.connection.is_ready(assignment.pending_heartbeat):
            answer, assignment.pending_heartbeat = assignment.pending_heartbeat, None
            try:
                heartbeat = self.ray.get(answer)
            except self.ray.exceptions.RayError:
                return events  # a trainer that is only out of reach answers the next; of a dead one, the result tells
            assignment.note_preparation(heartbeat)
            if heartbeat.is_preparing or heartbeat.is_waiting:
                return events
            trainer.node = heartbeat.node
            events += assignment.take_heartbeat(heartbeat)
        if assignment.pending_heartbeat is None:
            assignment.pending_heartbeat = trainer.actor.heartbeat.remote()
        return events

    def _last_events(self, assignment: Assignment, outcome: Outcome) -> list[Event]:
        """Return the events since the last heartbeat of a job that succeeded, which may have ended before the first."""
        if outcome.kind != "done":
            return []
        begun = [] if assignment.heartbeat else [Event(assignment.job, "working")]
        shown = assignment.heartbeat.published if assignment.heartbeat else []
        names = [member.name for member in assignment.job.members if member.name not in shown]
        return [*begun, *(Event(assignment.job, "published", text=name) for name in names)]

    def _outcome(self, trainer: TrainerHandle, assignment: Assignment) -> Outcome | None:
        """Return the outcome of the trainer's job, or None if it has not ended."""
        if trainer.death_text and trainer.node not in self.machines.look().alive:
            return self._outcome_of_dead_trainer(trainer, assignment, "preemptions", trainer.death_text)
        if self.connection.is_ready(assignment.result):
            return self._outcome_of_result(trainer, assignment)
        if trainer.death_text:
            return None
        if reason := assignment.why_hung(self.heartbeat):
            last = assignment.heartbeat or assignment.preparing
            assert last
            kill_process(self.connection, last.pid, scheduling_strategy=self.connection.on_node(last.node))
            self.pool.drop(trainer)
            return Outcome(assignment.job, "failed", f"{reason}; the trainer was ended", "errors")
        if self._has_waited_too_long(assignment):
            self.pool.drop(trainer)
            return Outcome(assignment.job, "unschedulable", self.machines.why_impossible(assignment.job))
        return None

    def _outcome_of_result(self, trainer: TrainerHandle, assignment: Assignment) -> Outcome | None:
        """Return the outcome of a job whose result is ready, or None if its trainer died and the machine must be probed."""
        errors = self.ray.exceptions
        try:
            result = self.ray.get(assignment.result)
        except errors.OutOfMemoryError as error:
            return self._outcome_of_dead_trainer(trainer, assignment, "oom", f"Ray ended it: {first_line(error)}")
        except errors.RayError as error:
            return self._outcome_of_error(trainer, assignment, error)
        if trainer.death_text:  # its machine has answered the probe
            if assignment.heartbeat and result.kills > assignment.heartbeat.kills:
                limit = f"limit {result.limit / 1e9:.1f} GB" if result.limit else "the machine has no more"
                return self._outcome_of_dead_trainer(trainer, assignment, "oom", limit)
            return self._outcome_of_dead_trainer(trainer, assignment, "errors", trainer.death_text)
        if result.failure and result.failure.kind is FailureKind.ENVIRONMENT:
            raise EnvironmentMismatchError(f"{result.failure.sentence}. Install the same versions, or set `environment: warn`.")
        if trainer.is_leaving and result.failure and result.failure.kind is FailureKind.STOPPED:
            self.pool.drop(trainer)
        else:
            trainer.assignment = None
        return outcome_of_result(assignment.job, result, trainer.is_leaving)

    def _outcome_of_error(self, trainer: TrainerHandle, assignment: Assignment, error: Exception) -> Outcome | None:
        """Probe the machine of a dead trainer and return None, unless it is known whether the machine is lost."""
        from workers.runtime.actor import check_alive

        said = " ".join(str(error).split())
        text = trainer.death_text or (f"it can't start ({last_line(error)})" if CANT_START in said else said)
        if trainer.death_text or getattr(error, "preempted", False) or "node has died" in said:
            return self._outcome_of_dead_trainer(trainer, assignment, "preemptions", text)
        if assignment.heartbeat is None:  # its machine is unknown
            return self._outcome_of_dead_trainer(trainer, assignment, "errors", text)
        on_node = self.connection.on_node(assignment.heartbeat.node)
        trainer.death_text = text
        assignment.result = untyped(check_alive).options(scheduling_strategy=on_node).remote()
        return None

    def _outcome_of_dead_trainer(self, trainer: TrainerHandle, assignment: Assignment, cause: Cause, text: str) -> Outcome:
        self.pool.trainers.remove(trainer)
        return outcome_of_death(assignment.job, cause, text)

    def _has_waited_too_long(self, assignment: Assignment) -> bool:
        """Return True if no machine for the job was added within its wait limit."""
        job = assignment.job
        if assignment.heartbeat is not None or self.machines.fit(job):
            return False
        may_wait = job.recipe.resources.wait_minutes is None
        if self.machines.is_scaled and may_wait and any(other.heartbeat for _, other in self.pool.busy()):
            return False  # if the cluster is at its limit, their machines may go later, and make room for one that fits
        return time.monotonic() > self.machines.wait_deadline(job, assignment.submitted_at)
