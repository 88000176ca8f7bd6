"""Run jobs in Ray actors: trainers with their resources, what their ends mean, and the fusion actor on the head."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.connection import Connection
from orchestrator.cluster.machines import ON_HEAD, Machines, Shape, Size
from orchestrator.config.team import HeartbeatSpec
from orchestrator.execution.executor import MACHINE_GONE, Cause, Event, Outcome, classify_result
from workers.config.job import Job
from workers.errors import ConclaveError, EnvironmentMismatchError, TrainingStopped
from workers.runtime.environment import environment
from workers.runtime.localize import DriverDisk

if TYPE_CHECKING:
    from workers.runtime.heartbeat import Heartbeat

FUSION_TRIES = 3
WAITING_NOTE_SECONDS = 20.0  # after which people are told that a job waits
MOST_WAITING = 32  # jobs that wait at once for machines of an autoscaler, which brings as many as these need
ENDING_SECONDS = 20  # that a hung trainer's machine may take to end it
REASON_CHARACTERS = 300
MACHINE_LEAVES = "its machine is being taken away; a checkpoint is written"
OUT_OF_MEMORY = "OOM: killed because the machine ran out of memory; give the job more memory"


@dataclass
class _Death:
    """A trainer is gone. The answer that was asked of its machine tells whether the machine is gone too."""

    text: str
    answer: Any


@dataclass
class _Trainer:
    """A trainer actor, and what is known of it.

    Attributes:
        actor: Ray's handle.
        shape: What it has.
        job: The job at hand.
        result: Ray's reference to the job's result.
        pending_heartbeat: Ray's reference to the heartbeat that it was asked for.
        heartbeat: Its last heartbeat for the job at hand.
        answered_at: When that came.
        stepped_at: When the last step was seen.
        notes_shown: Number of its notes that were shown.
        submitted_at: When the job was submitted.
        tracking: The tracking store and the run of the job.
        death: Its death, while it is not clear whether its machine is gone too.
        node: Ray's id of its machine, once it gave a heartbeat.
        is_leaving: Whether it was told to write a checkpoint and leave.
        has_waited: Whether people were told that the job waits.
    """

    actor: Any
    shape: Shape
    job: Job | None = None
    result: Any = None
    pending_heartbeat: Any = None
    heartbeat: Heartbeat | None = None
    answered_at: float = 0.0
    stepped_at: float = 0.0
    notes_shown: int = 0
    submitted_at: float = 0.0
    tracking: tuple[str | None, str | None] = (None, None)
    death: _Death | None = None
    node: str = ""
    is_leaving: bool = False
    has_waited: bool = False


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
    trainers: list[_Trainer] = field(default_factory=list)

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
        if any(t.job is None and t.shape == shape for t in self._staying()):
            return True
        busy, total = [t for t in self.trainers if t.job], self.machines.total(job.member.resources)
        rivals = [t.shape.size for t in busy if not shape.labels or t.shape.labels == shape.labels]
        if total.holds(Size.sum([shape.size, *rivals])):
            return True
        if self.machines.is_scaled:
            return sum(t.heartbeat is None for t in busy) < MOST_WAITING
        return not self.machines.fit(job)

    def submit(self, job: Job, uri: str | None, run: str | None) -> None:
        """Start a job in an idle trainer, or in a new one."""
        self._begin(self._trainer(self.machines.shape(job)), job, (uri, run))

    def _begin(self, trainer: _Trainer, job: Job, tracking: tuple[str | None, str | None]) -> None:
        trainer.job, trainer.heartbeat, trainer.pending_heartbeat = job, None, None
        trainer.notes_shown, trainer.has_waited = 0, False
        trainer.submitted_at, trainer.tracking = time.monotonic(), tracking
        trainer.result = trainer.actor.run.remote(job, *tracking, trainer.shape.gpus)

    def _hand_over(self) -> None:
        """Give an idle trainer the job of one that waits for a machine, which else might wait for the idle one's cores."""
        waiting = [t for t in self.trainers if t.job and not (t.heartbeat or t.death or self._is_ready(t.result))]
        for trainer in waiting:
            idle = next((t for t in self._staying() if t.job is None and t.shape == trainer.shape), None)
            if idle and trainer.job:
                self._drop(trainer)
                self._begin(idle, trainer.job, trainer.tracking)

    def _staying(self) -> list[_Trainer]:
        """Return trainers that may be given a job: not those on a machine that was told to go."""
        leaving = self.machines.look().leaving
        return [t for t in self.trainers if t.node not in leaving]

    def _leave_draining_machines(self) -> None:
        """Make trainers on machines that were told to go write a checkpoint and end; their jobs go on elsewhere."""
        for trainer in [t for t in self.trainers if t.node in self.machines.look().leaving]:
            if trainer.job is None:
                self._drop(trainer)
            elif not trainer.is_leaving:
                trainer.is_leaving = True
                trainer.actor.stop.remote()

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        """Return what happened to the jobs since the last call. Wait for about `seconds` at most."""
        self._leave_draining_machines()
        self._hand_over()
        busy = [t for t in self.trainers if t.job]
        self.ray.wait([t.death.answer if t.death else t.result for t in busy], num_returns=1, timeout=seconds)
        items: list[Event | Outcome] = []
        for trainer in busy:
            items += self._progress(trainer)
            items += self._outcomes(trainer)
        return items

    def stop(self, seconds: float) -> None:
        """Ask every running job to write a checkpoint and leave."""
        busy = [t for t in self.trainers if t.job]
        for trainer in busy:
            trainer.actor.stop.remote()
        if busy:
            self.ray.wait([t.result for t in busy], num_returns=len(busy), timeout=seconds)

    def close(self) -> None:
        """End all trainers."""
        for trainer in self.trainers:
            self.ray.kill(trainer.actor)
        self.trainers.clear()

    def call_on_head(self, function: Any, *arguments: Any) -> Any:
        """Call a function in the fusion actor, which is pinned to the head. Raises what the function raises."""
        from workers.runtime.actor import FusionActor

        for trainer in [t for t in self.trainers if t.job is None]:
            self._drop(trainer)
        for _ in range(FUSION_TRIES):
            actor = _untyped(FusionActor).options(num_cpus=0, resources=ON_HEAD).remote()
            try:
                return self.ray.get(actor.call.remote(function, *arguments))
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except self.ray.exceptions.RayError as error:
                reason = str(error).splitlines()[0]
            finally:
                self.ray.kill(actor)
        raise ConclaveError(f"the fusion actor died {FUSION_TRIES} times ({reason}). Run again: nothing is trained again.")

    def _trainer(self, shape: Shape) -> _Trainer:
        """Return an idle trainer of this shape, or a new one in the place of idle ones of other shapes."""
        from workers.runtime.actor import JobLocalizer, TrainerActor

        for trainer in self._staying():
            if trainer.job is None and trainer.shape == shape:
                return trainer
        for trainer in [t for t in self.trainers if t.job is None]:
            self._drop(trainer)
        localizer = JobLocalizer(environment(), self.strict, self.disk)
        actor = _untyped(TrainerActor).options(**shape.options()).remote(localizer)
        self.trainers.append(_Trainer(actor, shape))
        return self.trainers[-1]

    def _drop(self, trainer: _Trainer) -> None:
        self.trainers.remove(trainer)
        self.ray.kill(trainer.actor)

    def _progress(self, trainer: _Trainer) -> list[Event]:
        """Return events from the trainer's last heartbeat, and ask for the next one without waiting for it."""
        assert trainer.job
        if trainer.death:
            return []
        events: list[Event] = []
        waited = time.monotonic() - trainer.submitted_at
        if trainer.heartbeat is None and not trainer.has_waited and waited > WAITING_NOTE_SECONDS:
            trainer.has_waited = True
            events.append(Event(trainer.job, "note", text=f"waits for a machine with room for {trainer.shape.size}"))
        if trainer.pending_heartbeat is not None and self._is_ready(trainer.pending_heartbeat):
            try:
                heartbeat: Heartbeat = self.ray.get(trainer.pending_heartbeat)
            except self.ray.exceptions.RayError:
                return events  # the job's own result tells what happened
            trainer.pending_heartbeat = None
            if heartbeat.is_waiting:
                return events
            events += self._take_heartbeat(trainer, heartbeat)
        if trainer.pending_heartbeat is None:
            trainer.pending_heartbeat = trainer.actor.heartbeat.remote()
        return events

    def _take_heartbeat(self, trainer: _Trainer, heartbeat: Heartbeat) -> list[Event]:
        """Remember a heartbeat, and return what is new in it."""
        assert trainer.job
        job, before, trainer.heartbeat = trainer.job, trainer.heartbeat, heartbeat
        trainer.answered_at, trainer.node = time.monotonic(), heartbeat.node
        events = [Event(job, "working")] if before is None else []
        if before is None or heartbeat.steps > before.steps:
            trainer.stepped_at = trainer.answered_at
        if heartbeat.epoch > (before.epoch if before else 0):
            events.append(Event(job, "epoch", heartbeat.epoch, heartbeat.metrics))
        events += [Event(job, "note", text=text) for text in heartbeat.notes[trainer.notes_shown :]]
        trainer.notes_shown = len(heartbeat.notes)
        return events

    def _why_hung(self, trainer: _Trainer) -> str | None:
        """Return why a trainer counts as hung, or None. Before its first heartbeat it may still wait for a machine."""
        now = time.monotonic()
        if trainer.heartbeat is None:
            return None
        if now - trainer.answered_at > self.heartbeat.seconds:
            return f"hung: no sign of life for {self.heartbeat.seconds:g} s"
        if now - trainer.stepped_at > self.heartbeat.stall_minutes * 60:
            return f"hung: no step finished for {self.heartbeat.stall_minutes:g} minutes"
        return None

    def _has_waited_too_long(self, trainer: _Trainer) -> bool:
        """Return whether the machine that the job waits for never came."""
        assert trainer.job
        if trainer.heartbeat is not None or self.machines.fit(trainer.job):
            return False
        may_wait = trainer.job.member.resources.wait_minutes is None
        if self.machines.is_scaled and may_wait and any(t.job and t.heartbeat for t in self.trainers):
            return False  # their machines may go, where the cluster is at its limit, and make room for one that fits
        return time.monotonic() > self.machines.until(trainer.job, trainer.submitted_at)

    def _end_hung(self, trainer: _Trainer, reason: str) -> Outcome:
        """End a hung trainer by its process id, on its own machine."""
        from workers.runtime.actor import end_process

        assert trainer.job
        assert trainer.heartbeat
        on_node = self._on_node(trainer.heartbeat.node)
        ended = _untyped(end_process).options(scheduling_strategy=on_node).remote(trainer.heartbeat.pid)
        self.ray.wait([ended], timeout=ENDING_SECONDS)
        self._drop(trainer)
        return Outcome(trainer.job, None, "failed", f"{reason}; the trainer was ended", "errors")

    def _is_ready(self, reference: Any) -> bool:
        return bool(self.ray.wait([reference], timeout=0)[0])

    def _outcomes(self, trainer: _Trainer) -> list[Outcome]:
        """Return the outcome of the trainer's job, where there is one by now."""
        assert trainer.job
        if trainer.death:
            return self._judge_death(trainer, trainer.death)
        if self._is_ready(trainer.result):
            return self._judge_result(trainer)
        if reason := self._why_hung(trainer):
            return [self._end_hung(trainer, reason)]
        if self._has_waited_too_long(trainer):
            self._drop(trainer)
            return [Outcome(trainer.job, None, "unschedulable", self.machines.why_impossible(trainer.job))]
        return []

    def _judge_result(self, trainer: _Trainer) -> list[Outcome]:
        """Return the outcome of a job that returned something, or whose trainer died."""
        assert trainer.job
        job, errors = trainer.job, self.ray.exceptions
        try:
            result = self.ray.get(trainer.result)
        except errors.OutOfMemoryError:
            return [self._bury(trainer, "oom", OUT_OF_MEMORY)]
        except errors.RayError as error:
            return self._judge_error(trainer, error)
        if result.get("kind") == EnvironmentMismatchError.__name__:
            raise EnvironmentMismatchError(f"{result['error']}. Install the same there, or set `environment: warn`.")
        if trainer.is_leaving and result.get("kind") == TrainingStopped.__name__:
            self._drop(trainer)
            return [Outcome(job, None, "failed", MACHINE_LEAVES, "preemptions")]
        trainer.job = trainer.result = trainer.pending_heartbeat = None
        return [classify_result(job, result)]

    def _judge_error(self, trainer: _Trainer, error: Exception) -> list[Outcome]:
        """Return the outcome of a trainer's death; none yet where its machine has to be asked first."""
        from workers.runtime.actor import is_there

        text = " ".join(str(error).split())
        if getattr(error, "preempted", False) or "node has died" in text:
            return [self._bury(trainer, "preemptions", MACHINE_GONE)]
        if trainer.heartbeat is None:  # nobody knows where it ran
            return [self._bury(trainer, "errors", f"the trainer died: {text[:REASON_CHARACTERS]}")]
        on_node = self._on_node(trainer.heartbeat.node)
        trainer.death = _Death(text, _untyped(is_there).options(scheduling_strategy=on_node).remote())
        return []

    def _judge_death(self, trainer: _Trainer, death: _Death) -> list[Outcome]:
        """Judge a death: on a living machine it is an error. A lost machine shows only by not answering, some seconds later."""
        assert trainer.heartbeat
        if trainer.heartbeat.node not in self.machines.look().alive:
            return [self._bury(trainer, "preemptions", MACHINE_GONE)]
        if not self._is_ready(death.answer):
            return []
        try:
            self.ray.get(death.answer)
        except self.ray.exceptions.RayError:
            return [self._bury(trainer, "preemptions", MACHINE_GONE)]
        return [self._bury(trainer, "errors", f"the trainer died: {death.text[:REASON_CHARACTERS]}")]

    def _bury(self, trainer: _Trainer, cause: Cause, reason: str) -> Outcome:
        assert trainer.job
        self.trainers.remove(trainer)
        return Outcome(trainer.job, None, "failed", reason, cause)

    def _on_node(self, node: str) -> Any:
        """Return the scheduling strategy that means this machine and no other."""
        return self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)


def _untyped(actor: Any) -> Any:
    """Return an actor class without its type: Ray's decorator changes it in ways that no type checker follows."""
    return actor
