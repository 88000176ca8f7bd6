"""One job by several processes on one machine: Ray Train's TorchTrainer starts them, each with its share of the GPUs.

The first does all that a trainer does; the others only help it to train. Whoever asked for the job hears of it once a second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from workers import faults, member
from workers.errors import Diverged, Stopped
from workers.group import Several
from workers.job import Job
from workers.watcher import Watcher
from workers.work import Life, Progress, work

TELL_SECONDS = 1.0
TIMEOUT = 24 * 3600  # of a step that waits for another process; one that hangs is ended by its heartbeat before


@dataclass(frozen=True)
class Share:
    """What each process needs to know."""

    job: Job
    tracked: tuple[str | None, str | None]
    gpus: float
    start: Callable[[Job], tuple[Job, str, bool]]  # the job on its machine, a note, and whether nobody else sees its disk
    asker: Any  # the trainer actor


def run(share: Share) -> dict[str, Any]:
    """What `work` gives, of the first process. Raises what the others raised, if it was not the job's own trouble."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    asked = share.job.member.resources
    each = {"CPU": asked.cpus / asked.processes, **({"GPU": share.gpus / asked.processes} if share.gpus else {})}
    scaling = ScalingConfig(
        num_workers=asked.processes,
        use_gpu=bool(share.gpus),
        resources_per_worker=each,
        placement_strategy="STRICT_PACK",  # on one machine, as the job asks for it
        label_selector=dict(asked.labels[0]) if asked.labels else None,
    )
    with tempfile.TemporaryDirectory() as folder:  # for Train's own records: checkpoints are ours
        trainer = TorchTrainer(
            _process,
            train_loop_config={"share": share},
            torch_config=TorchConfig(backend="nccl" if share.gpus else "gloo", timeout_s=TIMEOUT),
            scaling_config=scaling,
            run_config=RunConfig(storage_path=folder, name=share.job.signature, failure_config=FailureConfig(max_failures=0)),
        )
        found = trainer.fit().return_value
    assert found is not None
    return dict(found)


def _process(config: dict[str, Share]) -> dict[str, Any]:
    """In each process, once torch.distributed is set up."""
    share, group = config["share"], Several()
    faults.subject(share.job.label)
    job, note, alone = share.start(share.job)
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if train.get_context().get_world_rank() > 0:
        with contextlib.suppress(Stopped, Diverged):  # all stop together: the first says so, and has its last words to send
            member.run(job, Watcher(), device, group)
        return {}
    progress = Progress()
    with _Told(progress, share.asker):
        return work(job, *share.tracked, progress, note, alone, device, group)


class _Told:
    """Tells the asker of a progress while it lasts, and brings back whether it is to stop."""

    def __init__(self, progress: Progress, asker: Any) -> None:
        self.progress, self.asker = progress, asker
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def _tell(self) -> None:
        node, last = ray.get_runtime_context().get_node_id(), False
        while not last:
            last = self.ended.wait(TELL_SECONDS)
            now = self.progress
            life = Life(os.getpid(), node, now.epoch_, now.metrics, list(now.notes), now.steps)
            now.stop = ray.get(self.asker.heard.remote(life))
