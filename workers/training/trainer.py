"""One training, from fresh weights to final ones, readable from top to bottom.

Everything random derives from (seed, epoch, step). So a training that is resumed from a checkpoint between two steps goes on
bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from workers.config.extensions import Labels
from workers.config.job import derive_seed
from workers.config.specs import MemberSpec, TrainedMember, TrainSpec
from workers.diagnostics.callback import Epoch, TrainingCallback
from workers.diagnostics.faults import fault_point
from workers.errors import DivergedError, TrainingStopped
from workers.models.network import Network, memory_format
from workers.storage.checkpoint_record import Sums
from workers.storage.checkpoints import Checkpoints
from workers.training.augmentation import augment, make_augmentations, to_float
from workers.training.averaging import WeightAverages
from workers.training.checkpoint_policy import CheckpointPolicy
from workers.training.collectives import SINGLE_PROCESS, SingleProcess
from workers.training.compilation import compile_network
from workers.training.distillation import Teacher
from workers.training.early_stopping import EarlyStopping
from workers.training.evaluation import Validation, resolve_precision
from workers.training.objective import Objective
from workers.training.optimization import learning_rate, make_optimizer
from workers.training.saved_state import Position, SavedState

LOOK_EVERY = 16  # steps between two looks at the loss on a GPU, which has to wait for each


@dataclass(frozen=True)
class TrainingData:
    """The rows that a training reads.

    Attributes:
        images: (N, H, W, 3) uint8, the images of the whole data set.
        labels: (N,) int64, their labels.
        fit: (n,) row numbers to train on.
        watch: Row numbers whose loss and accuracy are reported after each epoch, or None.
        stop: Row numbers by which the training stops early, or by which a search's trial is scored; or None.
        teacher: The teacher of a student, or None.
    """

    images: Tensor
    labels: Tensor
    fit: Tensor
    watch: Tensor | None
    stop: Tensor | None = None
    teacher: Teacher | None = None


@dataclass(frozen=True)
class TrainingTask:
    """The rows, the recipe and the surroundings of one training.

    Attributes:
        data: The rows.
        recipe: The recipe, with the seeds of this training.
        spec: What all trainings of the team share.
        members: The members that are still to be made, in the order in which the training makes them.
        device: Device to train on.
        checkpoints: Where checkpoints are kept; None for none.
        callback: Follows the training.
        checkpoint_seconds: Longest time without a checkpoint.
        group: The processes that train together.
    """

    data: TrainingData
    recipe: MemberSpec
    spec: TrainSpec
    members: tuple[TrainedMember, ...]
    device: torch.device
    checkpoints: Checkpoints | None = None
    callback: TrainingCallback = field(default_factory=TrainingCallback)
    checkpoint_seconds: float = 300.0
    group: SingleProcess = SINGLE_PROCESS


@dataclass
class TrainingResult:
    """A member that a training made: its network with the final weights, and how it came about.

    Attributes:
        network: The trained network.
        history: Metrics of each epoch from the start of the training.
        micro_batch: Images per forward pass.
        precision: "float32" or "bfloat16".
        resumed_from: Number of epochs that a checkpoint brought.
    """

    network: Network
    history: list[Epoch]
    micro_batch: int
    precision: str
    resumed_from: int

    def seconds(self, first: int = 0) -> float:
        """Return the seconds of training from epoch `first` on, evaluation left out, time before an interruption included."""
        return sum(epoch["seconds"] for epoch in self.history[first:])


Publish = Callable[[TrainedMember, TrainingResult], None]


class Trainer:
    """Trains one network. A pack of several networks has a lane for each of them (workers/training/packed.py).

    Args:
        network: The network with its initial weights.
        task: What to train on, and how.
        micro_batch: Largest number of images per forward pass.
        publish: Is called with each member as soon as it is made.
    """

    lanes = 1  # how many networks are trained at once

    def __init__(self, network: Network, task: TrainingTask, micro_batch: int, publish: Publish = lambda *_: None) -> None:
        self.task, self.data, self.recipe, self.spec = task, task.data, task.recipe, task.spec
        self.seed, self.device, self.group = task.recipe.seed, task.device, task.group
        self.callback, self.publish = task.callback, publish
        self.network, self.micro_batch = network, micro_batch
        self.missing = list(task.members)
        self.objective, self.augmentations = Objective(task.recipe), make_augmentations(task.recipe.augment)
        self.stopping = EarlyStopping(task.spec.stop, task.data.stop is not None)
        self.policy = CheckpointPolicy(task.checkpoint_seconds)
        self._set_up()

    def _set_up(self) -> None:
        self.histories: list[list[Epoch]] = [[] for _ in range(self.lanes)]
        self.precision = resolve_precision(self.spec.precision, self.device)
        self.format = self._memory_format()
        self.network = self.group.synchronize_batchnorm(self.network.to(self.device, memory_format=self.format))  # type: ignore[call-overload]
        self.model = self.group.wrap(self.network)
        if self.spec.compile:
            has_several_passes = self.spec.accumulate > 1 or self.micro_batch < self.spec.batch_size
            self.model = compile_network(self.model, self.spec.compile, self.device, has_several_passes)
        if self.data.teacher:
            self.data.teacher.to(self.device, self.format)
        self.optimizer = make_optimizer(self.recipe, self.network)
        has_second_member = any(member.averaged for member in self.missing)
        self.averages = WeightAverages(self.network, self.recipe, self.spec, has_second_member)
        self.saved = SavedState(self.task.checkpoints, self.network, self.optimizer, self.averages, self.stopping)
        rows = {"fuse": self.data.watch, "stop": self.data.stop}
        watched = {name: numbers for name, numbers in rows.items() if numbers is not None}
        self.validate = Validation(self.data.images, self.data.labels, watched, self.device, self.precision)
        self.batch = min(self.spec.batch_size * self.spec.accumulate, len(self.data.fit))
        self.steps = len(self.data.fit) // self.batch  # the ragged rest of an epoch's order is left out

    @property
    def history(self) -> list[Epoch]:
        """The metrics of each finished epoch, of the first lane."""
        return self.histories[0]

    def run(self) -> TrainingResult:
        """Train, and publish each member as it is made. Return the last one.

        Raises what `train` raises, and torch.OutOfMemoryError.
        """
        step, sums = self._resume()
        self.resumed_from = len(self.history)
        self.policy.start()
        self.callback.on_resume(self.histories)
        if step == 0:
            self._publish_members_before_the_end()  # of a training that was killed between its checkpoint and the artifact
        for epoch in range(self.resumed_from, self._last_epoch()):
            if self.stopping.is_over(self.history):
                break
            self._run_epoch(epoch, step, sums or self._no_sums())
            step, sums = 0, None
            self._publish_members_before_the_end()
        self.stopping.restore_best(self._evaluated_networks()[0])
        return [self._publish(member) for member in tuple(self.missing)][-1]

    def _last_epoch(self) -> int:
        """Return the number of epochs after which the last of the missing members is made."""
        return max(self.recipe.last_epoch(member, self.spec.epochs) for member in self.missing)

    def _run_epoch(self, epoch: int, first_step: int, sums: Sums) -> None:
        """Train for an epoch, measure it, and write a checkpoint where a member is made or it is worth the time."""
        trained = self._train_epoch(epoch, first_step, sums)
        validated = [self.validate(network) for network in self._evaluated_networks()]
        now = {"time": float(round(time.time() * 1000))}
        for history, *metrics in zip(self.histories, trained, validated, strict=True):
            history.append(metrics[0] | metrics[1] | now)
        self.averages.on_epoch_end(self.network, len(self.history))
        self.stopping.track(self.history, self._evaluated_networks()[0])
        is_end = epoch + 1 in [self.recipe.last_epoch(member, self.spec.epochs) for member in self.missing]
        if is_end or self.policy.is_due():
            self._save()
        self.callback.on_epoch_end(epoch, [history[-1] for history in self.histories])

    def _publish_members_before_the_end(self) -> None:
        """Publish the snapshots that this epoch ends. What ends with the training is published after the last epoch."""
        for member in tuple(self.missing):
            if self.recipe.last_epoch(member, self.spec.epochs) == len(self.history) < self._last_epoch():
                self._publish(member)

    def _publish(self, member: TrainedMember) -> TrainingResult:
        network = self._averaged_network() if member.averaged else self._evaluated_networks()[member.lane]
        history = list(self.histories[member.lane])
        result = TrainingResult(network, history, self.micro_batch, self.precision, self.resumed_from)
        self.publish(member, result)
        self.missing.remove(member)
        return result

    def _averaged_network(self) -> Network:
        torch.manual_seed(derive_seed(self.seed, "settle"))
        return self.averages.second_member(self._fit_images(), self.device)

    def _evaluated_networks(self) -> list[Network]:
        """Return the network of each lane that is evaluated after an epoch."""
        return [self.averages.evaluated(self.network)]

    def _fit_images(self) -> Iterator[Tensor]:
        """Yield all *fit* images in batches of one size, give or take one; shuffled, for a store may hold them class by class."""
        rows = self.data.fit[torch.randperm(len(self.data.fit))]
        for part in torch.tensor_split(rows, math.ceil(len(rows) / self.spec.batch_size)):
            yield to_float(self.data.images[part].to(self.device)).contiguous(memory_format=self.format)

    def _memory_format(self) -> torch.memory_format:
        return memory_format(self.network, self.device, self.precision)

    def _no_sums(self) -> Sums:
        return Sums([0.0] * self.lanes, [0.0] * self.lanes)

    def _train_epoch(self, epoch: int, first_step: int, sums: Sums) -> list[Epoch]:
        """Run the epoch's steps from `first_step` on; `sums` are those of the steps before. Return the metrics of each lane."""
        self.network.train()
        rows = self._order(epoch)
        loss, correct = torch.tensor(sums.loss, device=self.device), torch.tensor(sums.correct, device=self.device)
        rate = learning_rate(self.spec, self.recipe, (epoch + 1) * self.steps - 1, self.steps)
        began = time.perf_counter() - sums.seconds
        for step in range(first_step, self.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.spec, self.recipe, epoch * self.steps + step, self.steps)
            step_loss, step_correct = self._step(epoch, step, rows[..., step * self.batch : (step + 1) * self.batch])
            loss += step_loss * _nan_where_injected("fit.step")
            correct += step_correct
            self.callback.on_step_end()
            if self.device.type == "cpu" or step % LOOK_EVERY == 0:
                self._after_step(step + 1, loss, correct, began)
        totals = self.group.all_reduce(*loss, *correct)
        if not (all(map(math.isfinite, totals)) and all(bool(p.isfinite().all()) for p in self.network.parameters())):
            raise DivergedError(f"the loss or a weight is not finite after epoch {epoch + 1}")
        seconds, images = time.perf_counter() - began, self.steps * self.batch
        return [
            {
                "train/loss": total / self.steps,
                "train/accuracy": right / images,
                "train/lr": rate,
                "train/images_per_second": images / seconds,
                "seconds": seconds / self.lanes,  # what one lane costs
            }
            for total, right in zip(totals[: self.lanes], totals[self.lanes :], strict=True)
        ]

    def _order(self, epoch: int) -> Tensor:
        """Return the rows of an epoch's steps, one after another: (n,)."""
        return self._shuffled(epoch, self.seed)

    def _shuffled(self, epoch: int, seed: int) -> Tensor:
        order = self._generator(seed, epoch, "order", "cpu")
        return self.data.fit[torch.randperm(len(self.data.fit), generator=order)]

    def _after_step(self, step: int, loss: Tensor, correct: Tensor, began: float) -> None:
        """Check between two steps, all processes together, for a loss that is not finite, a stop, and an overdue checkpoint."""
        by_process = self.group.all_gather(*loss, *correct, self.callback.should_stop(), self.policy.is_overdue())
        *totals, stop, overdue = (sum(values) for values in zip(*by_process, strict=True))
        for total in totals[: self.lanes]:
            if not math.isfinite(total):
                raise DivergedError(f"the loss is {total} in epoch {len(self.history) + 1}, up to step {step}")
        if step == self.steps and not stop:
            return  # the epoch's own checkpoint follows
        if stop or overdue:
            seconds = time.perf_counter() - began
            self._save(step, [Sums(values[: self.lanes], values[self.lanes : -2], seconds) for values in by_process])
        if stop:
            raise TrainingStopped(f"stopped in epoch {len(self.history) + 1} after step {step}; a checkpoint is written")

    def _step(self, epoch: int, step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take one optimizer step on `rows`, in micro-batches. Return its mean loss and its number of right answers."""
        torch.manual_seed(derive_seed(self.seed, epoch, step, "dropout", *([self.group.rank] if self.group.rank else [])))
        x, targets = self._augmented(epoch, step, rows, self.seed)
        x = x.contiguous(memory_format=self.format)
        loss, correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        parts = self.group.micro_batches(len(rows), self.micro_batch)
        for part in parts:
            with self.group.no_sync(self.model) if part != parts[-1] else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    logits = self.model(x[part])
                    taught = self.data.teacher(x[part]) if self.data.teacher else None
                logits = logits.float()
                part_loss = self.objective(logits, targets, part, taught) * (len(logits) / len(rows))
                (part_loss * self.group.size).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean over processes
            loss += part_loss.detach()
            correct += (logits.argmax(1) == targets[0][part]).sum()
        if self.spec.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.spec.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averages.on_step_end(self.network)
        return loss, correct

    def _augmented(self, epoch: int, step: int, rows: Tensor, seed: int) -> tuple[Tensor, Labels]:
        images, labels = self.data.images[rows].to(self.device), self.data.labels[rows].to(self.device)
        return augment(images, labels, self.augmentations, self._generator(seed, epoch, step, self.device))

    def _generator(self, seed: int, epoch: int, purpose: object, device: torch.device | str) -> torch.Generator:
        return torch.Generator(device).manual_seed(derive_seed(seed, epoch, purpose))

    def _save(self, step: int = 0, sums: Sequence[Sums] = ()) -> None:
        """Write a checkpoint after `step` steps of the current epoch (0 at its end), with each process's sums."""
        with self.policy.writing():
            if self.task.checkpoints and not self.group.rank:
                self.saved.save(Position(self.histories, self.micro_batch, step, sums))
                self.callback.on_checkpoint()

    def _resume(self) -> tuple[int, Sums | None]:
        """Go on from a checkpoint. Return the number of finished steps of the current epoch, and what they summed up to."""
        first_end = min(self.recipe.last_epoch(member, self.spec.epochs) for member in self.missing)
        position = self.saved.restore(first_end)
        if position is None:
            return 0, None
        self.histories, self.micro_batch = position.histories, min(self.micro_batch, position.micro_batch)
        return position.step, position.sums[self.group.rank] if position.sums else None


def _nan_where_injected(point: str) -> float:
    """Return 1, or NaN where a test asks for it."""
    return math.nan if fault_point(point) == "nan" else 1.0
