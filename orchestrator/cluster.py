"""RayExecutor: connect or start Ray, trainer actors with their resources, the fusion actor on the head."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from orchestrator.config import Heartbeat
from orchestrator.launch import Cause, Event, Outcome, outcome
from workers.errors import ConclaveError, Rejected
from workers.spec import Job

if TYPE_CHECKING:
    from workers.actor import Life

FUSION_TRIES = 3
OBJECT_STORE_BYTES = 256 << 20
Shape = tuple[float, float, int]  # GPUs, CPUs, threads


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


@dataclass
class RayExecutor:
    """Jobs in Ray actors. Starts a private local Ray unless `address` names a cluster."""

    address: str | None = None
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    trainers: list[_Trainer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.private: str | None = None
        self.known: list[tuple[float, float]] = []
        self.looked = -1.0
        if self.address:
            _probe(self.address)
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        else:
            self.private = _private_token()
        _quiet()
        import ray
        import ray.util.scheduling_strategies

        self.ray = ray
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if self.address:
            ray.init(address=self.address, **options)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=os.cpu_count(),
                object_store_memory=OBJECT_STORE_BYTES,
                **options,
            )
        self.reaper = _start_reaper() if self.private else None
        self._tell_reaper()
        for number, handler in handlers.items():  # Ray's own would end the driver before it has tidied up
            signal.signal(number, handler)

    @property
    def nodes(self) -> list[tuple[float, float]]:
        """GPUs and CPUs of each living machine; under an autoscaler they come and go."""
        if time.monotonic() - self.looked > 1:
            found = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            self.known = [(float(r.get("GPU", 0)), float(r.get("CPU", 0))) for r in found]
            self.looked = time.monotonic()
        return self.known

    def impossible(self, job: Job) -> str | None:
        return None if job.member.resources.wait_minutes or self._fits(job) else self._why_impossible(job)

    def _fits(self, job: Job) -> bool:
        """Whether some machine that there is could hold the job."""
        gpus, cpus, _ = self._shape(job)
        return any(gpus <= node[0] and cpus <= node[1] for node in self.nodes)

    def _why_impossible(self, job: Job) -> str:
        gpus, cpus, _ = self._shape(job)
        there = ", ".join(f"{g:g} GPUs and {c:g} CPUs" for g, c in sorted(set(self.nodes), reverse=True)[:3])
        waited = job.member.resources.wait_minutes
        return (
            f"UNSCHEDULABLE: asks for {gpus:g} GPUs and {cpus:g} CPUs on one machine; there are machines with {there}"
            f"{f', and after {waited:g} minutes no other came' if waited else ''}. Lower `resources`, or add a machine."
        )

    def room(self, job: Job) -> bool:
        """Whether it could start now; a job that waits for a machine to come is submitted, so that one does."""
        shape = self._shape(job)
        if any(t.job is None and t.shape == shape for t in self.trainers):
            return True
        busy = [t.shape for t in self.trainers if t.job]
        total = [sum(node[i] for node in self.nodes) for i in (0, 1)]
        return all(sum(b[i] for b in busy) + shape[i] <= total[i] + 1e-9 for i in (0, 1)) or not self._fits(job)

    def submit(self, job: Job, uri: str | None, run: str | None) -> None:
        trainer = self._trainer(self._shape(job))
        trainer.job, trainer.life, trainer.asked, trainer.notes = job, None, None, 0
        trainer.submitted = time.monotonic()
        trainer.result = trainer.actor.run.remote(job, uri, run)

    def _tell_reaper(self) -> None:
        """Which processes are to go when this one is killed."""
        self.told = time.monotonic()
        if self.reaper and self.reaper.stdin:
            children = [p for p in psutil.Process().children(recursive=True) if p.pid != self.reaper.pid]
            found = []
            for child in children:
                with contextlib.suppress(psutil.Error):
                    found.append([child.pid, child.create_time()])
            with contextlib.suppress(BrokenPipeError):
                self.reaper.stdin.write(json.dumps(found) + "\n")
                self.reaper.stdin.flush()

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        if time.monotonic() - self.told > 2:
            self._tell_reaper()
        busy = [t for t in self.trainers if t.job]
        ready, _ = self.ray.wait([t.result for t in busy], num_returns=1, timeout=seconds)
        found: list[Event | Outcome] = []
        for trainer in busy:
            found += self._progress(trainer)
            if trainer.result in ready:
                found.append(self._ended(trainer))
            elif silence := self._silence(trainer):
                found.append(self._end(trainer, silence))
            elif self._waited_long(trainer):
                assert trainer.job
                self._drop(trainer)
                found.append(Outcome(trainer.job, None, "unschedulable", self._why_impossible(trainer.job)))
        return found

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
        self._tell_reaper()
        self.ray.shutdown()
        if self.reaper and self.reaper.stdin:
            self.reaper.stdin.close()
        if self.private:
            shutil.rmtree(self.private, ignore_errors=True)

    def call_on_head(self, function: Any, *arguments: Any) -> Any:
        """Run a function in the fusion actor, which is pinned to the head."""
        from workers.actor import FusionActor

        for trainer in [t for t in self.trainers if t.job is None]:
            self._drop(trainer)
        for _ in range(FUSION_TRIES):
            actor = _remote(FusionActor).options(num_cpus=0, resources={"node:__internal_head__": 0.001}).remote()
            try:
                return self.ray.get(actor.call.remote(function, *arguments))
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except self.ray.exceptions.RayError as error:
                died = str(error).splitlines()[0]
            finally:
                self.ray.kill(actor)
        raise ConclaveError(f"the fusion actor died {FUSION_TRIES} times ({died}). Run again: nothing is trained again.")

    def _shape(self, job: Job) -> Shape:
        asked = job.member.resources
        gpus = (1.0 if any(node[0] >= 1 for node in self.nodes) else 0.0) if asked.gpus is None else asked.gpus
        return gpus, asked.cpus, job.train.threads

    def _trainer(self, shape: Shape) -> _Trainer:
        """An idle actor of this shape, or a new one in the place of idle ones of other shapes."""
        from workers.actor import TrainerActor

        for trainer in self.trainers:
            if trainer.job is None and trainer.shape == shape:
                return trainer
        for trainer in [t for t in self.trainers if t.job is None]:
            self._drop(trainer)
        gpus, cpus, threads = shape
        pinned = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        actor = _remote(TrainerActor).options(num_gpus=gpus, num_cpus=cpus, runtime_env={"env_vars": pinned}).remote()
        self.trainers.append(_Trainer(actor, shape))
        return self.trainers[-1]

    def _drop(self, trainer: _Trainer) -> None:
        self.trainers.remove(trainer)
        self.ray.kill(trainer.actor)

    def _progress(self, trainer: _Trainer) -> list[Event | Outcome]:
        """Events from the last sign of life; asks for the next without waiting for it."""
        found: list[Event | Outcome] = []
        assert trainer.job
        if trainer.asked is not None and self.ray.wait([trainer.asked], timeout=0)[0]:
            try:
                life: Life = self.ray.get(trainer.asked)
            except self.ray.exceptions.RayError:
                return found  # the job's own result tells what happened
            before, trainer.life, trainer.asked = trainer.life, life, None
            trainer.answered = time.monotonic()
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
        if trainer.life is not None or self._fits(trainer.job):
            return False
        return time.monotonic() - trainer.submitted > trainer.job.member.resources.wait_minutes * 60

    def _end(self, trainer: _Trainer, reason: str) -> Outcome:
        """End a hung trainer by its process id, on its own node."""
        from workers.actor import end_process

        assert trainer.job
        assert trainer.life
        there = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(trainer.life.node, soft=False)
        done = _remote(end_process).options(scheduling_strategy=there).remote(trainer.life.pid)
        self.ray.wait([done], timeout=20)
        self._drop(trainer)
        return Outcome(trainer.job, None, "failed", f"{reason}; the trainer was ended", "errors")

    def _ended(self, trainer: _Trainer) -> Outcome:
        job, result = trainer.job, trainer.result
        assert job
        trainer.job = trainer.result = trainer.asked = None
        errors = self.ray.exceptions
        cause: Cause = "errors"
        try:
            return outcome(job, self.ray.get(result))
        except errors.OutOfMemoryError:
            cause, reason = "oom", "OOM: killed because the machine ran out of memory; give the job more, or lower batch_size"
        except errors.RayError as error:
            text = " ".join(str(error).split())
            if self._lost(trainer, error, text):
                cause, reason = "preemptions", "its machine went away"
            else:
                reason = f"the trainer died: {text[:300]}"
        self.trainers.remove(trainer)
        return Outcome(job, None, "failed", reason, cause)

    def _lost(self, trainer: _Trainer, error: Exception, text: str) -> bool:
        """Whether the trainer's machine was drained or is gone; a death on a living machine is an error."""
        if getattr(error, "preempted", False) or "node has died" in text:
            return True
        alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
        return trainer.life is not None and trainer.life.node not in alive


def _remote(actor: Any) -> Any:
    """Ray's decorator changes the class in ways that no type checker follows."""
    return actor


def _probe(address: str) -> None:
    """A dead address would block for two minutes and end in SystemExit: ask the port first."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=3).close()
    except (OSError, ValueError):
        raise Rejected(f"--address {address}: nobody answers there. Start Ray, or leave --address out.") from None


def _start_reaper() -> subprocess.Popen[str]:
    """In a session of its own, so that a signal to the driver's does not reach it."""
    command = [sys.executable, str(Path(__file__).with_name("reaper.py"))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)


def _private_token() -> str:
    """Ray listens on every interface: a token of our own, readable by us alone, set before ray is imported."""
    folder = tempfile.mkdtemp(prefix="conclave-ray-")
    token = Path(folder, "token")
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    return folder


def _quiet() -> None:
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_DEDUP_LOGS="0")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
