"""The trainer actors of a sweep: who is there, who has a job, and who leaves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.connection import Connection
from orchestrator.cluster.machines import Machines, Shape, Size
from orchestrator.execution.trainer_handle import Assignment, TrainerHandle, TrainerState
from workers.config.job import Job
from workers.config.resources import Resources
from workers.runtime.environment import environment
from workers.runtime.localize import DriverDisk

if TYPE_CHECKING:
    from workers.runtime.actor import JobLocalizer


@dataclass
class TrainerPool:
    """Makes trainers, keeps idle ones for the next job of their shape, and ends them.

    Attributes:
        connection: The connection to Ray.
        machines: The machines that Ray has.
        strict: Whether a machine with other versions than this one's ends the sweep.
        disk: The disk of the home, where machines may have other disks.
        trainers: All trainers.
    """

    connection: Connection
    machines: Machines
    strict: bool = False
    disk: DriverDisk | None = None
    trainers: list[TrainerHandle] = field(default_factory=list)

    @cached_property
    def localizer(self) -> JobLocalizer:
        """Prepares jobs for the trainers' machines."""
        from workers.runtime.actor import JobLocalizer

        return JobLocalizer(environment(), self.strict, self.disk)

    def busy(self) -> list[tuple[TrainerHandle, Assignment]]:
        """Return the trainers that have a job, each with it."""
        return [(trainer, trainer.assignment) for trainer in self.trainers if trainer.assignment]

    def idle(self, shape: Shape) -> TrainerHandle | None:
        """Return a trainer of this shape that may be given a job: none on a machine that was told to go."""
        leaving = self.machines.look().leaving
        fitting = (t for t in self.trainers if t.is_idle and t.shape == shape and t.node not in leaving)
        return next(fitting, None)

    def acquire(self, shape: Shape) -> TrainerHandle:
        """Return an idle trainer of this shape, or a new one in the place of idle ones of other shapes."""
        if trainer := self.idle(shape):
            return trainer
        self.drop_idle()
        self.trainers.append(begin_trainer(shape))
        return self.trainers[-1]

    def give(self, trainer: TrainerHandle, job: Job, tracking: tuple[str | None, tuple[str, ...]]) -> None:
        """Give a trainer a job.

        Args:
            trainer: The trainer, which has none.
            job: The job.
            tracking: The tracking store, and the runs of the job's members in it.
        """
        from workers.runtime.actor import Placement

        trainer.assign(job, tracking, Placement(self.localizer, trainer.shape.gpus))

    def drop(self, trainer: TrainerHandle) -> None:
        """End a trainer."""
        self.trainers.remove(trainer)
        self.connection.ray.kill(trainer.actor)

    def drop_idle(self) -> None:
        """End the trainers that have no job."""
        for trainer in [t for t in self.trainers if t.is_idle]:
            self.drop(trainer)

    def leave_draining_machines(self) -> None:
        """Make trainers on machines that were told to go write a checkpoint and end; their jobs go on elsewhere."""
        for trainer in [t for t in self.trainers if t.node in self.machines.look().leaving]:
            if trainer.is_idle:
                self.drop(trainer)
            elif trainer.state is not TrainerState.DEAD:
                trainer.leave()

    def hand_over(self) -> None:
        """Give an idle trainer the job of one that waits for a machine, which else might wait for the idle one's cores."""
        for trainer, assignment in self.busy():
            is_waiting = trainer.state is TrainerState.SUBMITTED and not self.connection.is_ready(assignment.result)
            idle = self.idle(trainer.shape)
            if is_waiting and idle:
                self.drop(trainer)
                self.give(idle, assignment.job, assignment.tracking)

    def stop(self, seconds: float) -> None:
        """Ask every trainer with a job to write a checkpoint and leave, and wait for that."""
        busy = self.busy()
        for trainer, _ in busy:
            trainer.actor.stop.remote()
        if busy:
            results = [assignment.result for _, assignment in busy]
            self.connection.ray.wait(results, num_returns=len(busy), timeout=seconds)

    def close(self) -> None:
        """End all trainers."""
        for trainer in self.trainers if not self.connection.is_lost else ():
            self.connection.ray.kill(trainer.actor)
        self.trainers.clear()


def begin_trainer(shape: Shape) -> TrainerHandle:
    """Begin a trainer, which imports what it needs before it has a job."""
    from workers.runtime.actor import TrainerActor

    return TrainerHandle(untyped(TrainerActor).options(**shape.options()).remote(shape.processes > 1), shape)


def begin_trainers(machines: Machines, wanted: Iterable[tuple[Resources, int]]) -> list[TrainerHandle]:
    """Begin trainers for what comes first, as many as the machines have room for at once.

    It stops at the first training that wants labels.

    Args:
        machines: The machines.
        wanted: Resources of each training, and the threads that it computes with.
    """
    total, begun = machines.total(), list[TrainerHandle]()
    for resources, threads in wanted:
        shape = machines.shape_for(resources, threads)
        if shape.labels or not total.holds(Size.sum([shape.size, *(trainer.shape.size for trainer in begun)])):
            break
        begun.append(begin_trainer(shape))
    return begun


def untyped(actor: Any) -> Any:
    """Return an actor class without its type: Ray's decorator changes it in ways that no type checker follows."""
    return actor
