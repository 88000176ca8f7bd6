"""RayExecutor: trainer actors with their resources, what their ends mean, the fusion actor on the head."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.connection import Connection
from orchestrator.launch import MACHINE_GONE, Cause, Event, Outcome, outcome
from orchestrator.machines import ON_HEAD, Machines, Shape, Size
from orchestrator.team import Heartbeat
from workers.elsewhere import Disk
from workers.environment import environment
from workers.errors import ConclaveError, OtherEnvironment, Stopped
from workers.job import Job

if TYPE_CHECKING:
    from workers.work import Life

FUSION_TRIES = 3
TOLD_SECONDS = 20.0  # after which people are told that a job waits
MACHINE_LEAVES = "its machine is being taken away; a checkpoint is written"
WAITING = 32  # jobs that wait at once for machines of an autoscaler, which brings as many as these need


@dataclass
class _Death:
    """A trainer is gone; whether its machine is too tells the answer that was asked of it."""

    text: str
    answer: Any


@dataclass
class _Trainer:
    actor: Any
    shape: Shape
    job: Job | None = None
    result: Any = None
    asked: Any = None
    life: Life | None = None  # the last sign of it, for the job at hand
    answered: float = 0.0
    stepped: float = 0.0
    notes: int = 0
    submitted: float = 0.0
    tracked: tuple[str | None, str | None] = (None, None)  # the store and the run that its job tells
    death: _Death | None = None
    node: str = ""  # where it is, once it gave a sign of life
    told_to_leave: bool = False
    told_to_wait: bool = False


@dataclass
class RayExecutor:
    """Jobs in Ray actors."""

    connection: Connection
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    strict: bool = False  # whether a machine with other versions than this one's ends the sweep
    disk: Disk | None = None  # the one that the home is on, where machines may have others
    trainers: list[_Trainer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ray = self.connection.ray
        self.machines = Machines(self.connection)

    def impossible(self, job: Job) -> str | None:
        now = time.monotonic()
        may_wait = self.machines.fit(job) or now < self.machines.until(job, now)
        return None if may_wait else self.machines.why_impossible(job)

    def room(self, job: Job) -> bool:
        """Whether it could start now; jobs that wait for a machine to come are submitted, so that one does."""
        shape = self.machines.shape(job)
        if any(t.job is None and t.shape == shape for t in self._staying()):
            return True
        busy, total = [t for t in self.trainers if t.job], self.machines.total(job.member.resources)
        rivals = [t.shape.size for t in busy if not shape.labels or t.shape.labels == shape.labels]
        if total.holds(Size.sum([shape.size, *rivals])):
            return True
        if self.machines.scaled:
            return sum(t.life is None for t in busy) < WAITING
        return not self.machines.fit(job)

    def submit(self, job: Job, uri: str | None, run: str | None) -> None:
        self._begin(self._trainer(self.machines.shape(job)), job, uri, run)

    def _begin(self, trainer: _Trainer, job: Job, uri: str | None, run: str | None) -> None:
        trainer.job, trainer.life, trainer.asked, trainer.notes, trainer.told_to_wait = job, None, None, 0, False
        trainer.submitted, trainer.tracked = time.monotonic(), (uri, run)
        trainer.result = trainer.actor.run.remote(job, uri, run, trainer.shape.gpus)

    def _hand_over(self) -> None:
        """An idle trainer takes the job of one that still waits for a machine, which else might wait for this one's cores."""
        for waiting in [t for t in self.trainers if t.job and not (t.life or t.death or self._ready(t.result))]:
            idle = next((t for t in self._staying() if t.job is None and t.shape == waiting.shape), None)
            if idle and waiting.job:
                self._drop(waiting)
                self._begin(idle, waiting.job, *waiting.tracked)

    def _staying(self) -> list[_Trainer]:
        """Trainers that may be given a job: not those on a machine that is told to go."""
        leaving = self.machines.look().leaving
        return [t for t in self.trainers if t.node not in leaving]

    def _leave(self) -> None:
        """Trainers of machines that are told to go write a checkpoint and end; their jobs go on elsewhere."""
        for trainer in [t for t in self.trainers if t.node in self.machines.look().leaving]:
            if trainer.job is None:
                self._drop(trainer)
            elif not trainer.told_to_leave:
                trainer.told_to_leave = True
                trainer.actor.stop.remote()

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        self._leave()
        self._hand_over()
        busy = [t for t in self.trainers if t.job]
        self.ray.wait([t.death.answer if t.death else t.result for t in busy], num_returns=1, timeout=seconds)
        return [item for trainer in busy for item in (*self._progress(trainer), *self._ended(trainer))]

    def stop(self, seconds: float) -> None:
        busy = [t for t in self.trainers if t.job]
        for trainer in busy:
            trainer.actor.stop.remote()
        if busy:
            self.ray.wait([t.result for t in busy], num_returns=len(busy), timeout=seconds)

    def close(self) -> None:
        for trainer in self.trainers:
            self.ray.kill(trainer.actor)
        self.trainers.clear()

    def call_on_head(self, function: Any, *arguments: Any) -> Any:
        """Run a function in the fusion actor, which is pinned to the head."""
        from workers.actor import FusionActor

        for trainer in [t for t in self.trainers if t.job is None]:
            self._drop(trainer)
        for _ in range(FUSION_TRIES):
            actor = _remote(FusionActor).options(num_cpus=0, resources=ON_HEAD).remote()
            try:
                return self.ray.get(actor.call.remote(function, *arguments))
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except self.ray.exceptions.RayError as error:
                died = str(error).splitlines()[0]
            finally:
                self.ray.kill(actor)
        raise ConclaveError(f"the fusion actor died {FUSION_TRIES} times ({died}). Run again: nothing is trained again.")

    def _trainer(self, shape: Shape) -> _Trainer:
        """An idle actor of this shape, or a new one in the place of idle ones of other shapes."""
        from workers.actor import Start, TrainerActor

        for trainer in self._staying():
            if trainer.job is None and trainer.shape == shape:
                return trainer
        for trainer in [t for t in self.trainers if t.job is None]:
            self._drop(trainer)
        actor = _remote(TrainerActor).options(**shape.options()).remote(Start(environment(), self.strict, self.disk))
        self.trainers.append(_Trainer(actor, shape))
        return self.trainers[-1]

    def _drop(self, trainer: _Trainer) -> None:
        self.trainers.remove(trainer)
        self.ray.kill(trainer.actor)

    def _progress(self, trainer: _Trainer) -> list[Event | Outcome]:
        """Events from the last sign of life; asks for the next without waiting for it."""
        found: list[Event | Outcome] = []
        assert trainer.job
        if trainer.death:
            return found
        if trainer.life is None and not trainer.told_to_wait and time.monotonic() - trainer.submitted > TOLD_SECONDS:
            trainer.told_to_wait = True
            found.append(Event(trainer.job, "note", text=f"waits for a machine with room for {trainer.shape.size}"))
        if trainer.asked is not None and self._ready(trainer.asked):
            try:
                life: Life = self.ray.get(trainer.asked)
            except self.ray.exceptions.RayError:
                return found  # the job's own result tells what happened
            if life.waiting:
                trainer.asked = None
                return found
            before, trainer.life, trainer.asked = trainer.life, life, None
            trainer.answered, trainer.node = time.monotonic(), life.node
            if before is None:
                found.append(Event(trainer.job, "working"))
            if before is None or life.steps > before.steps:
                trainer.stepped = trainer.answered
            if life.epoch > (before.epoch if before else 0):
                found.append(Event(trainer.job, "epoch", life.epoch, life.metrics))
            found += [Event(trainer.job, "note", text=text) for text in life.notes[trainer.notes :]]
            trainer.notes = len(life.notes)
        if trainer.asked is None:
            trainer.asked = trainer.actor.life.remote()
        return found

    def _silence(self, trainer: _Trainer) -> str | None:
        """Why a trainer counts as hung, or None. Before its first sign of life it may still wait for a machine."""
        now = time.monotonic()
        if trainer.life is None:
            return None
        if now - trainer.answered > self.heartbeat.seconds:
            return f"hung: no sign of life for {self.heartbeat.seconds:g} s"
        if now - trainer.stepped > self.heartbeat.stall_minutes * 60:
            return f"hung: no step finished for {self.heartbeat.stall_minutes:g} minutes"
        return None

    def _waited_long(self, trainer: _Trainer) -> bool:
        """Whether the machine that the job waits for never came."""
        assert trainer.job
        if trainer.life is not None or self.machines.fit(trainer.job):
            return False
        said_nothing = trainer.job.member.resources.wait_minutes is None
        if self.machines.scaled and said_nothing and any(t.job and t.life for t in self.trainers):
            return False  # whose machines may go, where the cluster is at its limit, and make room for one that fits
        return time.monotonic() > self.machines.until(trainer.job, trainer.submitted)

    def _end(self, trainer: _Trainer, reason: str) -> Outcome:
        """End a hung trainer by its process id, on its own node."""
        from workers.actor import end_process

        assert trainer.job
        assert trainer.life
        done = _remote(end_process).options(scheduling_strategy=self._on(trainer.life.node)).remote(trainer.life.pid)
        self.ray.wait([done], timeout=20)
        self._drop(trainer)
        return Outcome(trainer.job, None, "failed", f"{reason}; the trainer was ended", "errors")

    def _ready(self, reference: Any) -> bool:
        return bool(self.ray.wait([reference], timeout=0)[0])

    def _ended(self, trainer: _Trainer) -> list[Outcome]:
        """The outcome of the trainer's job, where there is one by now."""
        assert trainer.job
        if trainer.death:
            return self._judged(trainer, trainer.death)
        if self._ready(trainer.result):
            return self._result(trainer)
        if silence := self._silence(trainer):
            return [self._end(trainer, silence)]
        if self._waited_long(trainer):
            self._drop(trainer)
            return [Outcome(trainer.job, None, "unschedulable", self.machines.why_impossible(trainer.job))]
        return []

    def _result(self, trainer: _Trainer) -> list[Outcome]:
        """Of a job that gave something, or whose trainer died."""
        from workers.actor import is_there

        assert trainer.job
        job, errors = trainer.job, self.ray.exceptions
        try:
            found = self.ray.get(trainer.result)
            if found.get("kind") == OtherEnvironment.__name__:
                raise OtherEnvironment(f"{found['error']}. Install the same there, or set `environment: warn`.")
            if trainer.told_to_leave and found.get("kind") == Stopped.__name__:
                self._drop(trainer)
                return [Outcome(job, None, "failed", MACHINE_LEAVES, "preemptions")]
            given = outcome(job, found)
        except errors.OutOfMemoryError:
            return [self._died(trainer, "oom", "OOM: killed because the machine ran out of memory; give the job more memory")]
        except errors.RayError as error:
            text = " ".join(str(error).split())
            if getattr(error, "preempted", False) or "node has died" in text:
                return [self._died(trainer, "preemptions", MACHINE_GONE)]
            if trainer.life is None:  # nobody knows where it ran
                return [self._died(trainer, "errors", f"the trainer died: {text[:300]}")]
            trainer.death = _Death(text, _remote(is_there).options(scheduling_strategy=self._on(trainer.life.node)).remote())
            return []
        trainer.job = trainer.result = trainer.asked = None
        return [given]

    def _judged(self, trainer: _Trainer, death: _Death) -> list[Outcome]:
        """A death on a living machine is an error; a machine that is lost says so only by not answering, some seconds later."""
        assert trainer.life
        if trainer.life.node not in self.machines.look().alive:
            return [self._died(trainer, "preemptions", MACHINE_GONE)]
        if not self._ready(death.answer):
            return []
        try:
            self.ray.get(death.answer)
        except self.ray.exceptions.RayError:
            return [self._died(trainer, "preemptions", MACHINE_GONE)]
        return [self._died(trainer, "errors", f"the trainer died: {death.text[:300]}")]

    def _died(self, trainer: _Trainer, cause: Cause, reason: str) -> Outcome:
        assert trainer.job
        self.trainers.remove(trainer)
        return Outcome(trainer.job, None, "failed", reason, cause)

    def _on(self, node: str) -> Any:
        """The scheduling strategy that means this machine and no other."""
        return self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)


def _remote(actor: Any) -> Any:
    """Ray's decorator changes the class in ways that no type checker follows."""
    return actor
