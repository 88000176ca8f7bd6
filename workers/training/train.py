"""Train a network, with smaller micro-batches if the device runs out of memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from workers.config.specs import TrainedMember
from workers.errors import DeviceMemoryError
from workers.models.network import Network
from workers.training.memory import give_back, is_out_of_memory
from workers.training.steps import Stepper
from workers.training.task import Publish, TrainingResult, TrainingTask
from workers.training.trainer import Trainer


def train(build_network: Callable[[], Network], task: TrainingTask, publish: Publish = lambda *_: None) -> TrainingResult:
    """Train from fresh weights, or from the newest checkpoint, and publish each member as it is made.

    If the device runs out of memory, the micro-batch is halved and the training continues with the same effective batch.
    Every process of a group calls this; only the first one writes checkpoints and reports to the callback.

    Args:
        build_network: Returns the network with its initial weights.
        task: Data, recipe and settings of the training.
        publish: Called exactly once per member, as soon as it is made.

    Returns:
        The last member.

    Raises:
        DivergedError: If the loss or a weight is no longer finite.
        DeviceMemoryError: If not even two images at a time fit into the device's memory.
        CorruptFileError: If every checkpoint is damaged.
        TrainingStopped: If the callback asked the training to stop.
    """
    micro_batch = task.spec.batch_size
    missing = list(task.members)

    def publish_once(member: TrainedMember, result: TrainingResult) -> None:
        publish(member, result)
        missing.remove(member)

    give_back(task.device)  # memory of an earlier training in this process
    while True:
        left = replace(task, members=tuple(missing))
        try:
            return Trainer(Stepper(build_network(), left, micro_batch), left, publish_once).run()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        give_back(task.device)  # only now: the error's traceback held all tensors
        if task.group.size > 1:  # the other processes are in the middle of the step
            raise DeviceMemoryError("out of device memory; raise train.accumulate and lower train.batch_size")
        if micro_batch <= 2:  # batch statistics need two images
            raise DeviceMemoryError("out of device memory even with two images at a time")
        micro_batch = math.ceil(micro_batch / 2)
        task.callback.note(f"out of device memory: micro-batch halved to {micro_batch}, the effective batch stays")
