"""RayExecutor: connect or start Ray, trainer actors with their resources, the fusion actor on the head."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.launch import Event, Outcome, outcome
from workers.errors import Rejected
from workers.spec import Job

OBJECT_STORE_BYTES = 256 << 20
Shape = tuple[float, float, int]  # GPUs, CPUs, threads


@dataclass
class _Trainer:
    actor: Any
    shape: Shape
    job: Job | None = None
    result: Any = None
    asked: Any = None
    seen: tuple[int, int] = (0, 0)


@dataclass
class RayExecutor:
    """Jobs in Ray actors. Starts a private local Ray unless `address` names a cluster."""

    address: str | None = None
    trainers: list[_Trainer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.private: str | None = None
        if self.address:
            _probe(self.address)
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        else:
            self.private = _private_token()
        _silence()
        import ray

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
        for number, handler in handlers.items():  # Ray's own would end the driver before it has tidied up
            signal.signal(number, handler)
        total = ray.cluster_resources()
        self.total = (float(total.get("GPU", 0)), float(total.get("CPU", 0)))

    def impossible(self, job: Job) -> str | None:
        gpus, cpus, _ = self._shape(job)
        if gpus <= self.total[0] and cpus <= self.total[1]:
            return None
        return (
            f"UNSCHEDULABLE: asks for {gpus:g} GPUs and {cpus:g} CPUs; there are {self.total[0]:g} GPUs and "
            f"{self.total[1]:g} CPUs. Lower `resources`, or add a machine."
        )

    def room(self, job: Job) -> bool:
        shape = self._shape(job)
        if any(t.job is None and t.shape == shape for t in self.trainers):
            return True
        busy = [t.shape for t in self.trainers if t.job]
        return all(sum(b[i] for b in busy) + shape[i] <= self.total[i] + 1e-9 for i in (0, 1))

    def submit(self, job: Job, uri: str | None, run: str | None) -> None:
        trainer = self._trainer(self._shape(job))
        trainer.job, trainer.seen = job, (0, 0)
        trainer.result = trainer.actor.run.remote(job, uri, run)

    def poll(self, seconds: float) -> Iterable[Event | Outcome]:
        busy = [t for t in self.trainers if t.job]
        ready, _ = self.ray.wait([t.result for t in busy], num_returns=1, timeout=seconds)
        found: list[Event | Outcome] = []
        for trainer in busy:
            found += self._progress(trainer)
            if trainer.result in ready:
                found.append(self._ended(trainer))
        return found

    def close(self) -> None:
        for trainer in self.trainers:
            self.ray.kill(trainer.actor)
        self.trainers.clear()
        self.ray.shutdown()
        if self.private:
            shutil.rmtree(self.private, ignore_errors=True)

    def call_on_head(self, function: Any, *arguments: Any) -> Any:
        """Run a function in the fusion actor, which is pinned to the head."""
        from workers.actor import FusionActor

        for trainer in [t for t in self.trainers if t.job is None]:
            self._drop(trainer)
        actor = _remote(FusionActor).options(num_cpus=0, resources={"node:__internal_head__": 0.001}).remote()
        try:
            return self.ray.get(actor.call.remote(function, *arguments))
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        finally:
            self.ray.kill(actor)

    def _shape(self, job: Job) -> Shape:
        asked = job.member.resources
        gpus = (1.0 if self.total[0] >= 1 else 0.0) if asked.gpus is None else asked.gpus
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
        """Events from the last answer; asks again without waiting for it."""
        found: list[Event | Outcome] = []
        assert trainer.job
        if trainer.asked is not None and self.ray.wait([trainer.asked], timeout=0)[0]:
            try:
                epoch, metrics, notes = self.ray.get(trainer.asked)
            except self.ray.exceptions.RayError:
                return found  # the job's own result tells what happened
            if epoch > trainer.seen[0]:
                found.append(Event(trainer.job, "epoch", epoch, metrics))
            found += [Event(trainer.job, "note", text=text) for text in notes[trainer.seen[1] :]]
            trainer.seen = (max(epoch, trainer.seen[0]), len(notes))
            trainer.asked = None
        if trainer.asked is None:
            trainer.asked = trainer.actor.progress.remote()
        return found

    def _ended(self, trainer: _Trainer) -> Outcome:
        job, result = trainer.job, trainer.result
        assert job
        trainer.job = trainer.result = trainer.asked = None
        try:
            return outcome(job, self.ray.get(result))
        except self.ray.exceptions.OutOfMemoryError as error:
            reason = f"OOM: {error}"
        except self.ray.exceptions.RayError as error:
            reason = f"the trainer died: {str(error).splitlines()[0]}"
        self.trainers.remove(trainer)
        return Outcome(job, None, "failed", reason, retry=True)


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


def _private_token() -> str:
    """Ray listens on every interface: a token of our own, readable by us alone, set before ray is imported."""
    folder = tempfile.mkdtemp(prefix="conclave-ray-")
    token = Path(folder, "token")
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    return folder


def _silence() -> None:
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_DEDUP_LOGS="0")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
