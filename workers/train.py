"""One fit: which trainer does it, and what happens where the device has too little memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from workers.checkpoint import Checkpoints
from workers.errors import OutOfDeviceMemory
from workers.group import ALONE, Group
from workers.models import Network
from workers.packed import PackTrainer
from workers.spec import MemberSpec, TrainSpec
from workers.trainer import FitData, Fitted, Trainer
from workers.watcher import Watcher


def fit(
    make: Callable[[], Network],
    data: FitData,
    member: MemberSpec,
    spec: TrainSpec,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    watcher: Watcher | None = None,
    checkpoint_seconds: float = 300.0,
    group: Group = ALONE,
) -> Fitted:
    """Train from `make()`, or from the newest of `checkpoints`. Out of device memory: halve the micro-batch, go on.

    Every process of a `group` calls this alike; the first alone writes checkpoints and is watched.

    Raises Diverged, OutOfDeviceMemory, Corrupt and Stopped.
    """
    micro, watcher = spec.batch_size, watcher or Watcher()
    kind = PackTrainer if member.packed else Trainer
    while True:
        try:
            return kind(make(), data, member, spec, seed, device, micro, checkpoints, watcher, checkpoint_seconds, group).run()
        except torch.OutOfMemoryError:
            if group.size > 1:  # the others are in the middle of the step
                raise OutOfDeviceMemory("out of device memory; raise train.accumulate and lower train.batch_size") from None
            if micro <= 2:  # batch statistics need two images
                raise OutOfDeviceMemory("out of device memory even with two images at a time") from None
            micro = math.ceil(micro / 2)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            watcher.note(f"out of device memory: micro-batch halved to {micro}, the effective batch stays")
