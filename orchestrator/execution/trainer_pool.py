"""The trainer actors of a sweep: idle, busy and leaving."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.connection import Connection
from orchestrator.cluster.machines import Machines, Shape, Size
from orchestrator.execution.trainer_handle import Assignment, TrainerHandle
from workers.config.resources import Resources

if TYPE_CHECKING:
    from workers.runtime.actor import JobLocalizer

ENDING_SECONDS = 20.0  # limit for a machine to kill a hung process


@dataclass
class TrainerPool:
    """Starts trainers, keeps idle trainers for the next job of their shape, and kills them.

    Attributes:
        connection: The connection to Ray.
        machines: The machines that Ray has.
        localizer: Prepares jobs for the trainers' machines.
        trainers: All trainers.
    """

    connection: Connection
    machines: Machines
    localizer: JobLocalizer
    trainers: list[TrainerHandle] = field(default_factory=list)

    def busy(self) -> list[tuple[TrainerHandle, Assignment]]:
        """Return the trainers that have a job, with their assignments."""
        return [(trainer, trainer.assignment) for trainer in self.trainers if trainer.assignment]

    def idle(self, shape: Shape) -> TrainerHandle | None:
        """Return an idle trainer of this shape, or None. Trainers on draining machines don't count."""
        leaving = self.machines.look().leaving
        fitting = (t for t in self.trainers if t.is_idle and t.shape == shape and t.node not in leaving)
        return next(fitting, None)

    def acquire(self, shape: Shape) -> TrainerHandle:
        """Return an idle trainer of this shape, or kill the idle trainers of other shapes and start a new trainer."""
        if trainer := self.idle(shape):
            return trainer
        self.drop_idle()
        self.trainers.append(begin_trainer(shape))
        return self.trainers[-1]

    def drop(self, trainer: TrainerHandle) -> None:
        """Kill a trainer."""
        self.trainers.remove(trainer)
        self.connection.ray.kill(trainer.actor)

    def drop_idle(self) -> None:
        """Kill the idle trainers."""
        for trainer in [t for t in self.trainers if t.is_idle]:
            self.drop(trainer)

    def leave_draining_machines(self) -> None:
        """Make trainers on draining machines write a checkpoint and exit; their jobs resume elsewhere."""
        for trainer in [t for t in self.trainers if t.node in self.machines.look().leaving]:
            if trainer.is_idle:
                self.drop(trainer)
            elif not trainer.is_leaving:
                trainer.is_leaving = True
                trainer.actor.stop.remote()

    def reassign_waiting_jobs(self) -> None:
        """Move jobs that still wait for a machine to idle trainers, whose cores they may be waiting for."""
        for trainer, assignment in self.busy():
            is_waiting = assignment.heartbeat is None and not self.connection.is_ready(assignment.result)
            idle = self.idle(trainer.shape)
            if is_waiting and idle:
                self.drop(trainer)
                idle.assign(assignment.job, assignment.tracking, self.localizer)

    def stop(self, seconds: float) -> None:
        """Ask every busy trainer to write a checkpoint and exit, and wait for `seconds` at most."""
        busy = self.busy()
        for trainer, _ in busy:
            trainer.actor.stop.remote()
        if busy:
            results = [assignment.result for _, assignment in busy]
            self.connection.ray.wait(results, num_returns=len(busy), timeout=seconds)

    def close(self) -> None:
        """Kill all trainers."""
        for trainer in self.trainers if not self.connection.is_lost else ():
            self.connection.ray.kill(trainer.actor)
        self.trainers.clear()


def begin_trainer(shape: Shape) -> TrainerHandle:
    """Start a trainer. It runs its imports before it gets a job."""
    from workers.runtime.actor import TrainerActor

    actor = untyped(TrainerActor).options(**shape.options()).remote(shape.processes > 1)
    actor.prepare.remote()
    return TrainerHandle(actor, shape)


def begin_trainers(machines: Machines, wanted: Iterable[tuple[Resources, int]]) -> list[TrainerHandle]:
    """Start trainers for the first trainings, as many as fit on the machines at once.

    Stops at the first training that asks for labels.

    Args:
        machines: The machines.
        wanted: Resources and number of threads of each training.
    """
    total, begun = machines.total(), list[TrainerHandle]()
    for resources, threads in wanted:
        shape = machines.shape_for(resources, threads)
        if shape.labels or not total.holds(Size.sum([shape.size, *(trainer.shape.size for trainer in begun)])):
            break
        begun.append(begin_trainer(shape))
    return begun


def kill_process(connection: Connection, pid: int, **options: Any) -> None:
    """Kill a process by its id in a Ray task with these options, which place it: Ray can't kill a stopped process."""
    from workers.runtime.actor import end_process

    connection.ray.wait([untyped(end_process).options(**options).remote(pid)], timeout=ENDING_SECONDS)


def untyped(actor: Any) -> Any:
    """Return an actor class untyped: type checkers can't follow Ray's decorator."""
    return actor
