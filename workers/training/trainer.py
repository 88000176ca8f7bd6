"""Run one training from fresh to final weights.

All randomness derives from (seed, epoch, step), so a training resumed from a checkpoint between two steps continues bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.config.specs import TrainedMember
from workers.diagnostics.callback import Epoch
from workers.diagnostics.faults import fault_point
from workers.errors import DivergedError, TrainingStopped
from workers.storage.checkpoint_record import CheckpointRecord, Sums
from workers.training.checkpoint_policy import CheckpointPolicy
from workers.training.early_stopping import EarlyStopping
from workers.training.evaluation import Validation
from workers.training.saved_state import SavedState
from workers.training.steps import Stepper
from workers.training.task import Publish, TrainingResult, TrainingTask

LOSS_READ_INTERVAL = 16  # steps between two reads of the loss on a GPU: each read synchronizes


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether every value is finite. A finite sum has finite values; a non-finite sum may be an overflow."""
    sums = torch.stack([tensor.sum() for tensor in tensors]).isfinite()
    return bool(sums.all()) or all(bool(tensor.isfinite().all()) for tensor in tensors)


class Trainer:
    """Runs the loop of one training: epochs, validation, checkpoints, and publishing the members.

    Args:
        stepper: Takes the steps.
        task: Data, recipe and settings of the training.
        publish: Called with each member as soon as it is made.
    """

    def __init__(self, stepper: Stepper, task: TrainingTask, publish: Publish = lambda *_: None) -> None:
        self.stepper, self.task, self.recipe, self.spec = stepper, task, task.recipe, task.spec
        self.group, self.callback, self.publish = task.group, task.callback, publish
        self.missing = list(task.members)
        self.history: list[Epoch] = []  # the metrics of each finished epoch
        self.stopping = EarlyStopping(task.spec.stop, task.data.stop is not None)
        self.policy = CheckpointPolicy(task.checkpoint_seconds)
        self.saved = SavedState(task.checkpoints, stepper.network, stepper.optimizer, stepper.averages, self.stopping)
        rows = {task.data.watched_as: task.data.watch, "stop": task.data.stop}
        watched = {name: numbers for name, numbers in rows.items() if numbers is not None}
        self.validate = Validation(task.data.images, task.data.labels, watched, task.device, stepper.precision)

    def run(self) -> TrainingResult:
        """Train, and publish each member as it is made. Return the last one.

        Raises what `train` raises, and torch.OutOfMemoryError.
        """
        step, sums = self._resume()
        self.resumed_from = len(self.history)
        self.policy.start()
        self.callback.on_resume(self.history)
        if step == 0:
            self._publish_members_before_the_end()  # if it was killed between its checkpoint and the artifact
        for epoch in range(self.resumed_from, self._last_epoch()):
            if self.stopping.is_over(self.history):
                break
            self._run_epoch(epoch, step, sums or Sums())
            step, sums = 0, None
            self._publish_members_before_the_end()
        self.stopping.restore_best(self.stepper.evaluated_network())
        return [self._publish(member) for member in tuple(self.missing)][-1]

    def _last_epoch(self) -> int:
        """Return the number of epochs after which the last missing member is made."""
        return max(self.recipe.last_epoch(member, self.spec.epochs) for member in self.missing)

    def _run_epoch(self, epoch: int, first_step: int, sums: Sums) -> None:
        """Train and validate for an epoch. Write a checkpoint if a member is made or the policy allows it."""
        trained = self._train_epoch(epoch, first_step, sums)
        validated = self.validate(self.stepper.evaluated_network())
        self.history.append(trained | validated | {"time": float(round(time.time() * 1000))})
        self.stepper.averages.on_epoch_end(self.stepper.network, len(self.history))
        self.stopping.track(self.history, self.stepper.evaluated_network())
        is_end = epoch + 1 in [self.recipe.last_epoch(member, self.spec.epochs) for member in self.missing]
        if is_end or self.policy.is_due():
            self._save()
        self.callback.on_epoch_end(epoch, self.history[-1])

    def _publish_members_before_the_end(self) -> None:
        """Publish the snapshots that end with this epoch. The last members are published after the loop."""
        for member in tuple(self.missing):
            if self.recipe.last_epoch(member, self.spec.epochs) == len(self.history) < self._last_epoch():
                self._publish(member)

    def _publish(self, member: TrainedMember) -> TrainingResult:
        stepper = self.stepper
        network = stepper.averaged_network() if member.averaged else stepper.evaluated_network()
        is_captured = stepper.captured is not None
        result = TrainingResult(
            network, list(self.history), stepper.micro_batch, stepper.precision, self.resumed_from, is_captured
        )
        self.publish(member, result)
        self.missing.remove(member)
        return result

    def _train_epoch(self, epoch: int, first_step: int, sums: Sums) -> Epoch:
        """Run the epoch's steps from `first_step` on; `sums` covers the earlier steps. Return the epoch's metrics."""
        stepper, device = self.stepper, self.task.device
        stepper.network.train()
        rows = stepper.order(epoch)
        loss, correct = torch.tensor(sums.loss, device=device), torch.tensor(sums.correct, device=device)
        began = time.perf_counter() - sums.seconds
        for step in range(first_step, stepper.count):
            step_loss, step_correct = stepper.take(epoch, step, rows)
            loss += step_loss * _nan_where_injected("fit.step")
            correct += step_correct
            self.callback.on_step_end()
            if device.type == "cpu" or step % LOSS_READ_INTERVAL == 0:
                self._after_step(step + 1, loss, correct, began)
        total, right = self.group.all_reduce(loss, correct)
        if not (math.isfinite(total) and all_finite(list(stepper.network.parameters()))):
            raise DivergedError(f"the loss or a weight is not finite after epoch {epoch + 1}")
        seconds, images = time.perf_counter() - began, stepper.count * stepper.batch
        return {
            "train/loss": total / stepper.count,
            "train/accuracy": right / images,
            "train/lr": stepper.rate(epoch, stepper.count - 1),
            "train/images_per_second": images / seconds,
            "seconds": seconds,
        }

    def _after_step(self, step: int, loss: Tensor, correct: Tensor, began: float) -> None:
        """Check for a non-finite loss, a stop request and an overdue checkpoint, in all processes together."""
        by_process = self.group.all_gather(loss, correct, self.callback.should_stop(), self.policy.is_overdue())
        total, _, stop, overdue = (sum(values) for values in zip(*by_process, strict=True))
        if not math.isfinite(total):
            raise DivergedError(f"the loss is {total} in epoch {len(self.history) + 1}, up to step {step}")
        if step == self.stepper.count and not stop:
            return  # the epoch's own checkpoint follows
        if stop or overdue:
            seconds = time.perf_counter() - began
            self._save(step, [Sums(values[0], values[1], seconds) for values in by_process])
        if stop:
            raise TrainingStopped(f"stopped in epoch {len(self.history) + 1} after step {step}; a checkpoint is written")

    def _save(self, step: int = 0, sums: Sequence[Sums] = ()) -> None:
        """Write a checkpoint after `step` steps of the current epoch (0 at its end), with each process's sums."""
        with self.policy.writing():
            if self.task.checkpoints and not self.group.rank:
                epoch, micro_batch = len(self.history), self.stepper.micro_batch
                self.saved.save(
                    CheckpointRecord(epoch=epoch, step=step, history=self.history, micro_batch=micro_batch, sums=list(sums))
                )
                self.callback.on_checkpoint()

    def _resume(self) -> tuple[int, Sums | None]:
        """Resume from a checkpoint. Return the number of finished steps in the current epoch, and their sums."""
        first_end = min(self.recipe.last_epoch(member, self.spec.epochs) for member in self.missing)
        record = self.saved.restore(first_end)
        if record is None:
            return 0, None
        self.history = record.history
        self.stepper.micro_batch = min(self.stepper.micro_batch, record.micro_batch)
        return record.step, record.sums[self.group.rank] if record.sums else None


def _nan_where_injected(point: str) -> float:
    """Return 1, or NaN if a test injects it."""
    return math.nan if fault_point(point) == "nan" else 1.0
