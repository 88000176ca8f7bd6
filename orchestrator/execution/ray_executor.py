"""Run jobs in Ray actors: trainers with their resources, and the fusion actor on the head."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from orchestrator.cluster.connection import Connection
from orchestrator.cluster.machines import ON_HEAD, Machines, Shape, Size
from orchestrator.config.settings import HeartbeatSpec
from orchestrator.execution.executor import Answer, Event
from orchestrator.execution.outcomes import Death, Outcome, outcome_of_death, outcome_of_result
from orchestrator.execution.trainer_handle import Assignment, TrainerHandle, TrainerState
from workers.config.job import Job
from workers.errors import ConclaveError, EnvironmentMismatchError, FailureKind
from workers.runtime.environment import environment
from workers.runtime.localize import DriverDisk

FUSION_TRIES = 3
MOST_WAITING = 32  # jobs that wait at once for machines of an autoscaler, which brings as many as these need
ENDING_SECONDS = 20  # that a hung trainer's machine may take to end it


@dataclass
class RayExecutor:
    """Runs jobs in Ray actors.

    Attributes:
        connection: The connection to Ray.
        heartbeat: When a trainer counts as hung.
        strict: Whether a machine with other versions than this one's ends the sweep.
        disk: The disk of the home, where machines may have other disks.
    """

    connection: Connection
    heartbeat: HeartbeatSpec = field(default_factory=HeartbeatSpec)
    strict: bool = False
    disk: DriverDisk | None = None
    trainers: list[TrainerHandle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ray = self.connection.ray
        self.machines = Machines(self.connection)

    def why_unschedulable(self, job: Job) -> str | None:
        """Return why no machine can hold the job, or None where one can, or may still come."""
        now = time.monotonic()
        may_wait = self.machines.fit(job) or now < self.machines.until(job, now)
        return None if may_wait else self.machines.why_impossible(job)

    def has_capacity(self, job: Job) -> bool:
        """Return whether the job could start now. Jobs that wait for a machine are submitted too, so that one comes."""
        shape = self.machines.shape(job)
        if any(t.is_idle and t.shape == shape for t in self._staying()):
            return True
        busy, total = self._busy(), self.machines.total(job.recipe.resources)
        rivals = [t.shape.size for t, _ in busy if not shape.labels or t.shape.labels == shape.labels]
        if total.holds(Size.sum([shape.size, *rivals])):
            return True
        if self.machines.is_scaled:
            return sum(assignment.heartbeat is None for _, assignment in busy) < MOST_WAITING
        return not self.machines.fit(job)

    def submit(self, job: Job, uri: str | None, runs: tuple[str, ...]) -> None:
        """Start a job in an idle trainer, or in a new one."""
        self._trainer(self.machines.shape(job)).assign(job, (uri, runs))

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        """Return what happened to the jobs since the last call. Wait for about `seconds` at most."""
        self._leave_draining_machines()
        self._hand_over()
        busy = self._busy()
        waited_for = [t.death_answer if t.state is TrainerState.DEAD else assignment.result for t, assignment in busy]
        self.ray.wait(waited_for, num_returns=1, timeout=seconds)
        items: list[Event | Outcome] = []
        for trainer, assignment in busy:
            items += self._progress(trainer, assignment)
            if outcome := self._outcome(trainer, assignment):
                items += [*self._last_events(assignment, outcome), outcome]
        return items

    def stop(self, seconds: float) -> None:
        """Ask every running job to write a checkpoint and leave."""
        busy = self._busy()
        for trainer, _ in busy:
            trainer.actor.stop.remote()
        if busy:
            self.ray.wait([assignment.result for _, assignment in busy], num_returns=len(busy), timeout=seconds)

    def close(self) -> None:
        """End all trainers."""
        for trainer in self.trainers:
            self.ray.kill(trainer.actor)
        self.trainers.clear()

    def call_on_head(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call a function in the fusion actor, which is pinned to the head. Raises what the function raises."""
        from workers.runtime.actor import FusionActor

        for trainer in [t for t in self.trainers if t.is_idle]:
            self._drop(trainer)
        for _ in range(FUSION_TRIES):
            actor = _untyped(FusionActor).options(num_cpus=0, resources=ON_HEAD).remote()
            try:
                return cast(Answer, self.ray.get(actor.call.remote(function, *arguments)))
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except self.ray.exceptions.RayError as error:
                reason = str(error).splitlines()[0]
            finally:
                self.ray.kill(actor)
        raise ConclaveError(f"the fusion actor died {FUSION_TRIES} times ({reason}). Run again: nothing is trained again.")

    def _busy(self) -> list[tuple[TrainerHandle, Assignment]]:
        return [(trainer, trainer.assignment) for trainer in self.trainers if trainer.assignment]

    def _staying(self) -> list[TrainerHandle]:
        """Return trainers that may be given a job: not those on a machine that was told to go."""
        leaving = self.machines.look().leaving
        return [t for t in self.trainers if t.node not in leaving]

    def _leave_draining_machines(self) -> None:
        """Make trainers on machines that were told to go write a checkpoint and end; their jobs go on elsewhere."""
        for trainer in [t for t in self.trainers if t.node in self.machines.look().leaving]:
            if trainer.is_idle:
                self._drop(trainer)
            elif trainer.state is not TrainerState.DEAD:
                trainer.leave()

    def _hand_over(self) -> None:
        """Give an idle trainer the job of one that waits for a machine, which else might wait for the idle one's cores."""
        for trainer, assignment in self._busy():
            is_waiting = trainer.state is TrainerState.SUBMITTED and not self._is_ready(assignment.result)
            idle = next((t for t in self._staying() if t.is_idle and t.shape == trainer.shape), None)
            if is_waiting and idle:
                self._drop(trainer)
                idle.assign(assignment.job, assignment.tracking)

    def _trainer(self, shape: Shape) -> TrainerHandle:
        """Return an idle trainer of this shape, or a new one in the place of idle ones of other shapes."""
        from workers.runtime.actor import JobLocalizer, TrainerActor

        for trainer in self._staying():
            if trainer.is_idle and trainer.shape == shape:
                return trainer
        for trainer in [t for t in self.trainers if t.is_idle]:
            self._drop(trainer)
        localizer = JobLocalizer(environment(), self.strict, self.disk)
        actor = _untyped(TrainerActor).options(**shape.options()).remote(localizer)
        self.trainers.append(TrainerHandle(actor, shape))
        return self.trainers[-1]

    def _drop(self, trainer: TrainerHandle) -> None:
        self.trainers.remove(trainer)
        self.ray.kill(trainer.actor)

    def _progress(self, trainer: TrainerHandle, assignment: Assignment) -> list[Event]:
        """Return events from the trainer's last heartbeat, and ask for the next one without waiting for it."""
        if trainer.state is TrainerState.DEAD:
            return []
        events = assignment.waiting_note(trainer.shape.size)
        if assignment.pending_heartbeat is not None and self._is_ready(assignment.pending_heartbeat):
            try:
                heartbeat = self.ray.get(assignment.pending_heartbeat)
            except self.ray.exceptions.RayError:
                return events  # the job's own result tells what happened
            assignment.pending_heartbeat = None
            if heartbeat.is_waiting:
                return events
            events += trainer.take_heartbeat(heartbeat)
        if assignment.pending_heartbeat is None:
            assignment.pending_heartbeat = trainer.actor.heartbeat.remote()
        return events

    def _last_events(self, assignment: Assignment, outcome: Outcome) -> list[Event]:
        """Return what a job published since its last heartbeat, where it succeeded."""
        if outcome.kind != "done":
            return []
        shown = assignment.heartbeat.published if assignment.heartbeat else []
        names = [member.name for member in assignment.job.members if member.name not in shown]
        return [Event(assignment.job, "published", text=name) for name in names]

    def _outcome(self, trainer: TrainerHandle, assignment: Assignment) -> Outcome | None:
        """Return the outcome of the trainer's job, where there is one by now."""
        if trainer.state is TrainerState.DEAD:
            return self._outcome_of_death(trainer, assignment)
        if self._is_ready(assignment.result):
            return self._outcome_of_result(trainer, assignment)
        if reason := assignment.why_hung(self.heartbeat):
            self._end_hung(trainer, assignment)
            return outcome_of_death(assignment.job, Death.HUNG, reason)
        if self._has_waited_too_long(assignment):
            self._drop(trainer)
            return Outcome(assignment.job, "unschedulable", self.machines.why_impossible(assignment.job))
        return None

    def _outcome_of_result(self, trainer: TrainerHandle, assignment: Assignment) -> Outcome | None:
        """Return the outcome of a job that returned something; none yet where its trainer died, and its machine is asked."""
        errors = self.ray.exceptions
        try:
            result = self.ray.get(assignment.result)
        except errors.OutOfMemoryError as error:
            return self._bury(trainer, assignment, Death.MEMORY, str(error))
        except errors.RayError as error:
            return self._ask_machine(trainer, assignment, error)
        if result.failure and result.failure.kind is FailureKind.ENVIRONMENT:
            raise EnvironmentMismatchError(f"{result.failure.sentence}. Install the same there, or set `environment: warn`.")
        is_leaving = trainer.state is TrainerState.LEAVING
        outcome = outcome_of_result(assignment.job, result, is_leaving)
        if is_leaving and result.failure and result.failure.kind is FailureKind.STOPPED:
            self._drop(trainer)
        else:
            trainer.release()
        return outcome

    def _ask_machine(self, trainer: TrainerHandle, assignment: Assignment, error: Exception) -> Outcome | None:
        """Ask a dead trainer's machine whether it lives, where Ray's error leaves that open."""
        from workers.runtime.actor import is_there

        text = " ".join(str(error).split())
        if getattr(error, "preempted", False) or "node has died" in text:
            return self._bury(trainer, assignment, Death.MACHINE, text)
        if assignment.heartbeat is None:  # nobody knows where it ran
            return self._bury(trainer, assignment, Death.ITSELF, text)
        on_node = self._on_node(assignment.heartbeat.node)
        trainer.mark_dead(text, _untyped(is_there).options(scheduling_strategy=on_node).remote())
        return None

    def _outcome_of_death(self, trainer: TrainerHandle, assignment: Assignment) -> Outcome | None:
        """Judge a death: on a living machine it is an error. A lost machine shows only by not answering, some seconds later."""
        if trainer.node not in self.machines.look().alive:
            return self._bury(trainer, assignment, Death.MACHINE, trainer.death_text)
        if not self._is_ready(trainer.death_answer):
            return None
        try:
            self.ray.get(trainer.death_answer)
        except self.ray.exceptions.RayError:
            return self._bury(trainer, assignment, Death.MACHINE, trainer.death_text)
        return self._bury(trainer, assignment, Death.ITSELF, trainer.death_text)

    def _bury(self, trainer: TrainerHandle, assignment: Assignment, death: Death, text: str) -> Outcome:
        self.trainers.remove(trainer)
        return outcome_of_death(assignment.job, death, text)

    def _end_hung(self, trainer: TrainerHandle, assignment: Assignment) -> None:
        """End a hung trainer by its process id, on its own machine."""
        from workers.runtime.actor import end_process

        assert assignment.heartbeat
        on_node = self._on_node(assignment.heartbeat.node)
        ended = _untyped(end_process).options(scheduling_strategy=on_node).remote(assignment.heartbeat.pid)
        self.ray.wait([ended], timeout=ENDING_SECONDS)
        self._drop(trainer)

    def _has_waited_too_long(self, assignment: Assignment) -> bool:
        """Return whether the machine that the job waits for never came."""
        job = assignment.job
        if assignment.heartbeat is not None or self.machines.fit(job):
            return False
        may_wait = job.recipe.resources.wait_minutes is None
        if self.machines.is_scaled and may_wait and any(other.heartbeat for _, other in self._busy()):
            return False  # their machines may go, where the cluster is at its limit, and make room for one that fits
        return time.monotonic() > self.machines.until(job, assignment.submitted_at)

    def _is_ready(self, reference: Any) -> bool:
        return bool(self.ray.wait([reference], timeout=0)[0])

    def _on_node(self, node: str) -> Any:
        """Return the scheduling strategy that means this machine and no other."""
        return self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)


def _untyped(actor: Any) -> Any:
    """Return an actor class without its type: Ray's decorator changes it in ways that no type checker follows."""
    return actor
