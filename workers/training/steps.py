"""Take the optimizer steps of one network."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from weakref import WeakMethod

import numpy as np
import torch
from torch import Tensor, nn

from workers.config.extensions import Labels
from workers.config.job import derive_seed
from workers.models.network import Network, memory_format
from workers.training.augmentation import make_augmentations, mix, to_float, transform
from workers.training.averaging import WeightAverages
from workers.training.captured import CAPTURING_DEVICES, CapturedStep, NotCapturedError, mixes, why_not_captured
from workers.training.captured_augmentation import CapturedAugmentation, can_be_captured
from workers.training.evaluation import resolve_precision
from workers.training.objective import Objective
from workers.training.optimization import learning_rate, make_optimizer
from workers.training.task import TrainingTask


class Stepper:
    """Takes the optimizer steps of one network.

    All randomness derives from (seed, epoch, step), so a step does not depend on what ran before it in this process.

    Args:
        network: The network with its initial weights.
        task: Data, recipe and settings of the training.
        micro_batch: Largest number of images per forward pass.

    Attributes:
        network: The network, on its device.
        optimizer: Its optimizer.
        averages: The averages of its weights.
        precision: "float32" or "bfloat16".
        micro_batch: Largest number of images per forward pass.
        batch: Number of images per step.
        count: Number of steps per epoch; an incomplete last batch is dropped.
    """

    def __init__(self, network: Network, task: TrainingTask, micro_batch: int) -> None:
        self.data, self.recipe, self.spec, self.group = task.data, task.recipe, task.spec, task.group
        self.seed, self.device, self.micro_batch = task.recipe.seed, task.device, micro_batch
        self.note = task.callback.note
        self.objective, self.augmentations = Objective(task.recipe), make_augmentations(task.recipe.augment)
        self.batch = min(task.spec.batch_size * task.spec.accumulate, len(task.data.fit))
        self.count = min(len(task.data.fit) // self.batch, task.spec.steps_per_epoch or sys.maxsize)
        self.precision = resolve_precision(task.spec.precision, task.device)
        self.format = memory_format(network, self.device, self.precision)
        moved = network.to(self.device, memory_format=self.format)  # type: ignore[call-overload]
        self.network: Network = self.group.synchronize_batchnorm(moved)
        self.model = self.group.wrap(self.network)
        if task.data.teacher:
            task.data.teacher.to(self.device, self.format)
        self.optimizer = make_optimizer(task.recipe, self.network)
        self.averages = WeightAverages(self.network, task.recipe, task.spec, any(m.averaged for m in task.members))

    def evaluated_network(self) -> Network:
        """Return the network that is evaluated after an epoch."""
        return self.averages.evaluated(self.network)

    def averaged_network(self) -> Network:
        """Return the second member's network, which has averaged weights."""
        torch.manual_seed(derive_seed(self.seed, "settle"))
        return self.averages.second_member(self._fit_images(), self.device)

    def order(self, epoch: int) -> Tensor:
        """Return an epoch's row numbers in training order: (n,)."""
        generator, rows = self._generator(epoch, "order", "cpu"), self.data.fit
        if self.data.sampling is None:
            order = torch.randperm(len(rows), generator=generator)
        else:
            order = torch.multinomial(self.data.sampling[rows], len(rows), replacement=True, generator=generator)
        return rows[order].to(self.data.images.device)

    def rate(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(self.spec, self.recipe, epoch * self.count + step, self.count)

    def take(self, epoch: int, step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step.

        Args:
            epoch: Index of the epoch.
            step: Index of the step within the epoch.
            rows: Row numbers of the whole epoch, from `order`.

        Returns:
            The mean loss of the step's rows and the number of correct answers.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(epoch, step)
        return self._step(epoch, step, rows[step * self.batch : (step + 1) * self.batch])

    @cached_property
    def captured(self) -> CapturedStep | None:
        """The step as a CUDA graph, created before the first step; None if it cannot be captured."""
        if self.device.type not in CAPTURING_DEVICES or self.why_not_captured:
            return None
        return CapturedStep(WeakMethod(self._update), self.network, self.optimizer, mixes(self.augmentations))

    @cached_property
    def captured_augmentation(self) -> CapturedAugmentation | None:
        """The augmentations as a separate CUDA graph; None if the step or the augmentations cannot be captured."""
        has_pixels = not self.data.images.is_floating_point()
        is_captured = self.captured is not None and has_pixels and can_be_captured(self.augmentations)
        return CapturedAugmentation(self.augmentations) if is_captured else None

    @property
    def why_not_captured(self) -> str | None:
        """The reason that the steps cannot be captured, or None if they can."""
        if self.group.size > 1:
            return "several processes train together"
        passes = len(self.group.micro_batches(self.batch, self.micro_batch))
        return why_not_captured(self.recipe, self.spec, self.optimizer, passes)

    def _rate(self, epoch: int, step: int) -> float:
        """Return a step's learning rate, rounded to float32 on a GPU, so that eager and captured steps agree."""
        rate = self.rate(epoch, step)
        return float(np.float32(rate)) if self.device.type in CAPTURING_DEVICES else rate

    def _step(self, epoch: int, step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take one optimizer step on `rows`, in micro-batches. Return its mean loss and number of correct answers."""
        self._seed_network(derive_seed(self.seed, epoch, step, "dropout", *([self.group.rank] if self.group.rank else [])))
        x, labels = self._augmented(epoch, step, rows)
        weights = self._weights(rows)
        x = x.contiguous(memory_format=self.format)
        loss, correct = self._captured_update(x, labels, weights, self._rate(epoch, step))
        self.averages.on_step_end(self.network)
        return loss, correct

    def _seed_network(self, seed: int) -> None:
        """Seed the generator that the network draws from, as in dropout."""
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed also formats the stack, for a lazy CUDA call
        else:
            torch.manual_seed(seed)

    def _captured_update(self, x: Tensor, labels: Labels, weights: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
        """Update the weights on a batch, as one CUDA graph if possible."""
        if self.captured is not None:
            try:
                return self.captured(x, labels, weights, rate)
            except NotCapturedError as error:
                self.captured = None
                self.note(f"its step can't be one CUDA graph, so it runs kernel by kernel ({error})")
        return self._update(x, labels, weights)

    def _update(self, x: Tensor, labels: Labels, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Update the weights on a batch, in micro-batches. Return its mean loss and number of correct answers."""
        loss, correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        parts = self.group.micro_batches(len(x), self.micro_batch)
        for part in parts:
            with self.group.no_sync(self.model) if part != parts[-1] else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    logits = self.model(x[part])
                    taught = self.data.teacher(x[part]) if self.data.teacher else None
                logits = logits.float()
                part_loss = self.objective(logits, labels, part, taught, weights) * (len(logits) / len(x))
                (part_loss * self.group.size).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean over processes
            loss += part_loss.detach()
            correct += (logits.argmax(1) == labels.first[part]).sum()
        if self.spec.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.spec.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, correct

    def _augmented(self, epoch: int, step: int, rows: Tensor) -> tuple[Tensor, Labels]:
        images, labels = self.data.images[rows].to(self.device), self.data.labels[rows].to(self.device)
        if self.captured_augmentation is not None:
            try:
                x, generator = self.captured_augmentation(images, derive_seed(self.seed, epoch, step))
                return mix(x, labels, self.augmentations, generator)
            except NotCapturedError as error:
                self.captured_augmentation = None
                self.note(f"its augmentations can't be one CUDA graph, so they run kernel by kernel ({error})")
        generator = self._generator(epoch, step, self.device)
        return mix(transform(images, self.augmentations, generator), labels, self.augmentations, generator)

    def _weights(self, rows: Tensor) -> Tensor | None:
        """Return each row's loss weight, or None for equal weights."""
        return None if self.data.weights is None else self.data.weights[rows].to(self.device)

    def _fit_images(self) -> Iterator[Tensor]:
        """Yield all *fit* images in batches of nearly equal size, shuffled because a store may be sorted by class."""
        rows = self.data.fit[torch.randperm(len(self.data.fit))]
        for part in torch.tensor_split(rows, math.ceil(len(rows) / self.spec.batch_size)):
            yield to_float(self.data.images[part].to(self.device)).contiguous(memory_format=self.format)

    def _generator(self, epoch: int, purpose: object, device: torch.device | str) -> torch.Generator:
        return torch.Generator(device).manual_seed(derive_seed(self.seed, epoch, purpose))
