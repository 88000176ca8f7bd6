"""Run jobs in Ray actors: trainers with their resources, and the fusion actor on the head."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from orchestrator.cluster.connection import Connection
from orchestrator.cluster.machines import ON_HEAD, Machines, Size
from orchestrator.config.settings import HeartbeatSpec
from orchestrator.execution.executor import Answer, Event
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.execution.supervisor import Supervisor
from orchestrator.execution.trainer_handle import TrainerHandle
from orchestrator.execution.trainer_pool import TrainerPool, kill_process, untyped
from workers.config.job import Job
from workers.errors import ConclaveError, first_line

if TYPE_CHECKING:
    from workers.runtime.actor import JobLocalizer

FUSION_TRIES = 3
HEARTBEAT_SECONDS = 1.0  # between two checks of the fusion actor
STARTING_SECONDS = 600.0  # limit for the fusion actor's imports
MAX_WAITING_JOBS = 32  # jobs that may wait for an autoscaler at once; it starts as many machines as they need


@dataclass
class RayExecutor:
    """Runs jobs in Ray actors: a pool holds the trainers, and a supervisor decides the outcomes of their jobs.

    Attributes:
        connection: The connection to Ray.
        localizer: Prepares jobs for the trainers' machines.
        heartbeat: When a trainer counts as hung.
        trainers: Trainers that were started already, and have no job.
    """

    connection: Connection
    localizer: JobLocalizer
    heartbeat: HeartbeatSpec = field(default_factory=HeartbeatSpec)
    trainers: Sequence[TrainerHandle] = ()

    def __post_init__(self) -> None:
        self._begin(self.trainers)

    def _begin(self, trainers: Sequence[TrainerHandle]) -> None:
        self.ray = self.connection.ray
        self.machines = Machines(self.connection)
        self.pool = TrainerPool(self.connection, self.machines, self.localizer, list(trainers))
        self.supervisor = Supervisor(self.pool, self.heartbeat)
        self.fusion_actor: Any = None
        self.modules: tuple[str, ...] = ()

    def why_unschedulable(self, job: Job) -> str | None:
        """Return the reason that no machine can hold the job, or None if a machine can, or may still be added."""
        now = time.monotonic()
        may_wait = self.machines.fit(job) or now < self.machines.wait_deadline(job, now)
        return None if may_wait else self.machines.why_impossible(job)

    def has_capacity(self, job: Job) -> bool:
        """Return whether to submit the job now: it can start, or it must wait in Ray for a machine to be added."""
        shape = self.machines.shape(job)
        if self.pool.idle(shape):
            return True
        busy, total = self.pool.busy(), self.machines.total(job.recipe.resources)
        rivals = [t.shape.size for t, _ in busy if not shape.labels or t.shape.labels == shape.labels]
        if total.holds(Size.sum([shape.size, *rivals])):
            return True
        if self.machines.is_scaled:
            return sum(assignment.heartbeat is None for _, assignment in busy) < MAX_WAITING_JOBS
        return not self.machines.fit(job)

    def submit(self, job: Job, uri: str | None, runs: tuple[str, ...]) -> None:
        """Start a job in an idle trainer, or in a new one."""
        self.pool.acquire(self.machines.shape(job)).assign(job, (uri, runs), self.localizer)

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        """Return the events and outcomes since the last call, waiting for about `seconds` at most.

        Raises RayLostError if Ray itself is gone, because its answers about jobs are wrong then.
        """
        self.connection.check()
        self.pool.leave_draining_machines()
        self.pool.reassign_waiting_jobs()
        busy = self.pool.busy()
        self.ray.wait([assignment.result for _, assignment in busy], num_returns=1, timeout=seconds)
        self.connection.check()
        return [item for trainer, assignment in busy for item in self.supervisor.poll_trainer(trainer, assignment)]

    def withdraw(self) -> list[Job]:
        """Take back the jobs whose trainers still wait for a machine, and return them."""
        waiting = [(t, a) for t, a in self.pool.busy() if a.heartbeat is None and not self.connection.is_ready(a.result)]
        for trainer, _ in waiting:
            self.pool.drop(trainer)
        return [assignment.job for _, assignment in waiting]

    def stop(self, seconds: float) -> None:
        """Ask every running job to write a checkpoint and exit."""
        if not self.connection.is_lost:
            self.pool.stop(seconds)

    def close(self) -> None:
        """Kill all trainers and the fusion actor."""
        self.pool.close()
        if self.fusion_actor is not None:
            self._end(self.fusion_actor)
            self.fusion_actor = None

    def recover(self) -> bool:
        """Restart a lost local Ray; return False on a cluster. Raises ConclaveError if Ray does not start."""
        if not self.connection.restart():
            return False
        self._begin(())  # the new Ray knows none of the old actors
        return True

    def prepare_on_head(self, modules: Sequence[str]) -> None:
        """Start the fusion actor if a core is free, so that it imports these modules ahead of its first call.

        If no core is free, `call_on_head` starts it with these modules.
        """
        self.modules = tuple(modules)
        busy = Size.sum([Size(0, 0), *(trainer.shape.size for trainer, _ in self.pool.busy())])
        if busy.cpus < self.machines.total().cpus:
            self._begin_fusion_actor()

    def _begin_fusion_actor(self) -> None:
        from workers.runtime.actor import FusionActor

        if self.fusion_actor is None:
            self.fusion_actor = untyped(FusionActor).options(num_cpus=0, resources=ON_HEAD).remote(self.modules)

    def call_on_head(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call a function in the fusion actor, which is pinned to the head. Raises the function's exceptions.

        If the actor dies or hangs, a new actor repeats the call; ConclaveError after FUSION_TRIES attempts.
        """
        self.connection.check()
        self.pool.drop_idle()
        for _ in range(FUSION_TRIES):
            self._begin_fusion_actor()
            actor, self.fusion_actor = self.fusion_actor, None
            try:
                if self._waits_for(actor, answer := actor.call.remote(function, *arguments)):
                    return cast(Answer, self.ray.get(answer))
                reason = "it gave no sign of life in time"
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except self.ray.exceptions.RayError as error:
                self.connection.check()
                reason = first_line(error)
            finally:
                self._end(actor)
        raise ConclaveError(f"the fusion actor died {FUSION_TRIES} times ({reason}). Run again: nothing is trained again.")

    def _waits_for(self, actor: Any, answer: Any) -> bool:
        """Wait for an answer of the fusion actor. Return False if the actor stops responding."""
        heard_at, heartbeat, pid = time.monotonic(), actor.heartbeat.remote(), None
        while not self.ray.wait([answer], timeout=HEARTBEAT_SECONDS)[0]:
            self.connection.check()
            if self.connection.is_ready(heartbeat):
                pid, heartbeat, heard_at = self.ray.get(heartbeat), actor.heartbeat.remote(), time.monotonic()
            silent = time.monotonic() - heard_at
            if pid is not None and silent > self.heartbeat.seconds:
                kill_process(self.connection, pid, resources=ON_HEAD)
                return False
            if pid is None and silent > STARTING_SECONDS:  # pinned to the head, it does not wait for a machine
                return False
        return True

    def _end(self, actor: Any) -> None:
        if not self.connection.is_lost:
            self.ray.kill(actor)
