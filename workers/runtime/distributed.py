"""Train one job in several processes on one machine, started by Ray Train's TorchTrainer.

Each process gets its share of the GPUs. The first does everything that a trainer does; the others only help it to train. Once a
second, the first reports to the trainer actor that started the job.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from workers.config.job import Job
from workers.diagnostics import faults
from workers.diagnostics.callback import TrainingCallback
from workers.errors import ConclaveError, DivergedError, FailureKind, TrainingStopped
from workers.runtime import training_job
from workers.runtime.heartbeat import JobProgress
from workers.runtime.job_result import Failure, JobResult
from workers.runtime.job_runner import JobContext, run_job
from workers.training.collectives import ProcessGroup

REPORT_SECONDS = 1.0
TOGETHER = (FailureKind.STOPPED, FailureKind.DIVERGED)  # failures that all processes notice in the same step
TIMEOUT_SECONDS = 24 * 3600  # for a step that waits for another process; missing heartbeats end a hung process earlier


class FirstProcessFailedError(Exception):
    """The first process failed. Ray Train ends the others."""


@dataclass(frozen=True)
class DistributedJob:
    """Everything that each process of a group needs to know.

    Attributes:
        job: The job.
        context: The tracking store and the run.
        gpus: Number of GPUs of all processes together.
        localize: Prepares the job for the processes' machine.
        trainer: Handle of the trainer actor to report to.
    """

    job: Job
    context: JobContext
    gpus: float
    localize: Callable[[Job], tuple[Job, str, bool]]
    trainer: Any


def train_distributed(work: DistributedJob) -> JobResult:
    """Train a job in several processes. Return the result of `run_job` in the first process.

    Raises whatever another process raised, except TrainingStopped and DivergedError, which the first process reports; and
    FirstProcessFailedError after the first process has reported another failure to the trainer actor.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    wanted = work.job.recipe.resources
    per_process = {"CPU": wanted.cpus / wanted.processes, **({"GPU": work.gpus / wanted.processes} if work.gpus else {})}
    scaling = ScalingConfig(
        num_workers=wanted.processes,
        use_gpu=bool(work.gpus),
        resources_per_worker=per_process,
        placement_strategy="STRICT_PACK",  # all on one machine
        label_selector=dict(wanted.labels[0]) if wanted.labels else None,
    )
    with tempfile.TemporaryDirectory() as folder:  # for Ray Train's records: we write our own checkpoints
        trainer = TorchTrainer(
            _run_process,
            train_loop_config={"work": work},
            torch_config=TorchConfig(backend="nccl" if work.gpus else "gloo", timeout_s=TIMEOUT_SECONDS),
            scaling_config=scaling,
            run_config=RunConfig(storage_path=folder, name=work.job.signatures[0], failure_config=FailureConfig(max_failures=0)),
        )
        result = trainer.fit().return_value
    assert isinstance(result, JobResult)
    return result


def _run_process(config: dict[str, DistributedJob]) -> JobResult:
    """Run in each process, once torch.distributed is set up."""
    work, group = config["work"], ProcessGroup()
    faults.set_job(work.job.label)
    try:
        job, note, is_isolated = work.localize(work.job)
    except ConclaveError as error:
        if error.kind is FailureKind.UNEXPECTED:  # only this process failed: Ray ends the others
            raise
        return JobResult(Failure.of(error))  # all processes share the machine, so all of them fail alike
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if train.get_context().get_world_rank() > 0:
        with contextlib.suppress(TrainingStopped, DivergedError):  # all stop together, and the first process reports it
            training_job.train_job(job, TrainingCallback(), device, group)
        return JobResult()
    progress = JobProgress()
    context = replace(work.context, note=note, is_isolated=is_isolated, device=device, group=group)
    with _Reporting(progress, work.trainer):
        result = run_job(job, progress, context)
    if result.failure and result.failure.kind not in TOGETHER:  # the other processes would wait for this one
        ray.get(work.trainer.fail.remote(result.failure))
        raise FirstProcessFailedError(result.failure.sentence)
    return result


class _Reporting:
    """Reports progress to the trainer actor in the background, and receives its stop requests."""

    def __init__(self, progress: JobProgress, trainer: Any) -> None:
        self.progress, self.trainer = progress, trainer
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def _report(self) -> None:
        node, is_last = ray.get_runtime_context().get_node_id(), False
        while not is_last:
            is_last = self.ended.wait(REPORT_SECONDS)
            heartbeat = self.progress.heartbeat(os.getpid(), node)
            self.progress.stop_requested = ray.get(self.trainer.report.remote(heartbeat))
