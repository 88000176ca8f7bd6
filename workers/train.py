"""One fit, from fresh weights to final ones: pure of Ray and MLflow, readable from top to bottom.

Everything random derives from (seed, epoch, step), so a fit resumed from an epoch's checkpoint goes on bit for bit.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from workers import checkpoint
from workers.augment import augment, to_float
from workers.data import Rows
from workers.errors import Diverged, OutOfDeviceMemory
from workers.models import Network
from workers.spec import AdamW, MemberSpec, OneCycleSchedule, StepSchedule, TrainSpec, derive_seed

EVAL_BATCH = 512
Epoch = dict[str, float]


@dataclass(frozen=True)
class FitData:
    """Images (N, H, W, 3) uint8 and labels (N,) of the whole store; the rows to fit, and those to watch."""

    images: Tensor
    labels: Tensor
    fit: Tensor
    watch: Tensor
    stop: Tensor | None = None


@dataclass
class Fitted:
    """What `fit` gives: the network with its final weights, the history, and how it came about."""

    network: Network
    history: list[Epoch]
    micro_batch: int
    precision: str
    resumed_from: int

    @property
    def seconds(self) -> float:
        """Seconds of training, those before an interruption included, evaluation left out."""
        return sum(epoch["seconds"] for epoch in self.history)


def resolve_precision(asked: str, device: torch.device) -> str:
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_units() else "float32"


def _has_bf16_units() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def learning_rate(spec: TrainSpec, base: float, step: int, steps: int) -> float:
    """The rate at optimizer step `step` (from 0), with `steps` steps an epoch. one_cycle is torch's OneCycleLR."""
    schedule = spec.schedule
    if isinstance(schedule, StepSchedule):
        return base * float(schedule.factor) ** (step // steps // schedule.every)
    total = spec.epochs * steps
    if isinstance(schedule, OneCycleSchedule):
        peak = max(schedule.warmup * total - 1, 1e-9)
        if step <= peak:
            return _cosine(base / 25, base, step / peak)
        return _cosine(base, base / 25e4, (step - peak) / max(total - 1 - peak, 1e-9))
    return _cosine(base, 0.0, step / total)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def fit(
    make: Callable[[], Network],
    data: FitData,
    member: MemberSpec,
    spec: TrainSpec,
    seed: int,
    device: torch.device,
    folder: Path | None = None,
    on_epoch: Callable[[int, Epoch], None] = lambda epoch, metrics: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Train from `make()`, or from the checkpoint in `folder`. Out of device memory: halve the micro-batch, go on.

    Raises Diverged, OutOfDeviceMemory and Corrupt.
    """
    micro = spec.batch_size
    while True:
        try:
            return _Fit(make(), data, member, spec, seed, device, micro, folder).run(on_epoch)
        except torch.OutOfMemoryError:
            if micro <= 2:  # batch statistics need two images
                raise OutOfDeviceMemory("out of device memory even with two images at a time") from None
            micro = math.ceil(micro / 2)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            on_note(f"out of device memory: micro-batch halved to {micro}, the effective batch stays")


@dataclass
class _Fit:
    network: Network
    data: FitData
    member: MemberSpec
    spec: TrainSpec
    seed: int
    device: torch.device
    micro: int
    folder: Path | None
    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = resolve_precision(self.spec.precision, self.device)
        self.optimizer = _optimizer(self.member, self.network)
        average = self.spec.ema and get_ema_multi_avg_fn(self.spec.ema)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True) if average else None
        self.batch = min(self.spec.batch_size * self.spec.accumulate, len(self.data.fit))
        self.steps = len(self.data.fit) // self.batch  # the ragged rest of an epoch's order is left out

    def run(self, on_epoch: Callable[[int, Epoch], None]) -> Fitted:
        self._resume()
        start = len(self.history)
        for epoch in range(start, self.spec.epochs):
            if self._stopped():
                break
            metrics = self._epoch(epoch) | self._watch()
            self.history.append(metrics)
            self._remember()
            self._save()
            on_epoch(epoch, metrics)
        if self.best:
            self._final().load_state_dict(self.best)
        return Fitted(self._final(), self.history, self.micro, self.precision, start)

    def _final(self) -> Network:
        return self.ema.module if self.ema else self.network  # type: ignore[return-value]

    def _epoch(self, epoch: int) -> Epoch:
        began = time.perf_counter()
        self.network.train()
        order = self._generator(epoch, "order", "cpu")
        rows = self.data.fit[torch.randperm(len(self.data.fit), generator=order)]
        loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        rate = 0.0
        for step in range(self.steps):
            rate = learning_rate(self.spec, self.member.optimizer.lr, epoch * self.steps + step, self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            step_loss, step_correct = self._step(epoch, step, rows[step * self.batch : (step + 1) * self.batch])
            loss += step_loss
            correct += step_correct
            if (self.device.type == "cpu" or step % 16 == 0) and not math.isfinite(step_loss.item()):
                raise Diverged(f"the loss is {step_loss.item()} in epoch {epoch + 1}, step {step + 1}")
        mean = loss.item() / self.steps
        if not (math.isfinite(mean) and all(bool(p.isfinite().all()) for p in self.network.parameters())):
            raise Diverged(f"the loss or a weight is not finite after epoch {epoch + 1}")
        seconds, images = time.perf_counter() - began, self.steps * self.batch
        return {
            "train/loss": mean,
            "train/accuracy": correct.item() / images,
            "train/lr": rate,
            "train/images_per_second": images / seconds,
            "seconds": seconds,
        }

    def _step(self, epoch: int, step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step on `rows`, in micro-batches. Gives its mean loss and its count of right answers."""
        torch.manual_seed(derive_seed(self.seed, epoch, step, "dropout"))
        images, labels = self.data.images[rows].to(self.device), self.data.labels[rows].to(self.device)
        generator = self._generator(epoch, step, self.device)
        x, (first, second, share) = augment(images, labels, self.member.augment, generator)
        loss, correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for part in _parts(len(rows), self.micro):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = self.network(x[part])
            logits = logits.float()
            one = self._loss(logits, first[part])
            if share < 1:
                one = share * one + (1 - share) * self._loss(logits, second[part])
            one = one * (len(logits) / len(rows))
            one.backward()  # type: ignore[no-untyped-call]
            loss += one.detach()
            correct += (logits.argmax(1) == first[part]).sum()
        if self.spec.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.spec.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update_parameters(self.network)
        return loss, correct

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.member.label_smoothing)

    def _generator(self, epoch: int, what: object, device: torch.device | str) -> torch.Generator:
        return torch.Generator(device).manual_seed(derive_seed(self.seed, epoch, what))

    def _watch(self) -> Epoch:
        """Loss and accuracy on *fuse* rows, to be looked at; on the rows of `train.stop`, to stop by."""
        loss, accuracy = self._evaluate(self.data.watch)
        watched = {"fuse/loss": loss, "fuse/accuracy": accuracy}
        if self.data.stop is not None:
            watched["stop/loss"] = self._evaluate(self.data.stop)[0]
        return watched

    def _evaluate(self, rows: Tensor) -> tuple[float, float]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits, _ = outputs(self._final(), self.data.images, rows, self.device)
        labels = self.data.labels[rows].cpu()
        loss = F.cross_entropy(logits, labels).item()
        return (loss if math.isfinite(loss) else 1e9), (logits.argmax(1) == labels).float().mean().item()

    def _remember(self) -> None:
        if self.data.stop is not None and self.history[-1]["stop/loss"] <= min(e["stop/loss"] for e in self.history):
            self.best = {k: v.detach().clone() for k, v in self._final().state_dict().items()}

    def _stopped(self) -> bool:
        if self.spec.stop is None or not self.history:
            return False
        losses = [epoch["stop/loss"] for epoch in self.history]
        return len(losses) - 1 - losses.index(min(losses)) >= self.spec.stop.patience

    def _save(self) -> None:
        if self.folder is None:
            return
        slots = {
            f"{i}|{name}": value
            for i, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        groups: dict[str, dict[str, Tensor]] = {"network": self.network.state_dict(), "optimizer": slots}
        if self.ema:
            groups["ema"] = self.ema.state_dict()
        if self.best:
            groups["best"] = self.best
        new = self.folder.with_name(f".{self.folder.name}.new")
        checkpoint.save(new, groups, {"history": self.history, "seed": self.seed})
        checkpoint.replace(new, self.folder)

    def _resume(self) -> None:
        if self.folder is None or not (self.folder / checkpoint.MANIFEST).is_file():
            return
        record = checkpoint.record(self.folder)
        self.network.load_state_dict(checkpoint.load(self.folder, "network"))
        parameters = list(self.network.parameters())
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in checkpoint.load(self.folder, "optimizer").items():
            index, name = key.split("|")
            state.setdefault(int(index), {})[name] = _laid_out_like(parameters[int(index)], value)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        if self.ema:
            self.ema.load_state_dict(checkpoint.load(self.folder, "ema"))
        if "best.safetensors" in record["files"]:
            self.best = checkpoint.load(self.folder, "best")
        self.history = record["history"]


def _parts(count: int, largest: int) -> list[slice]:
    """Slices of equal length (give or take one), none longer than `largest`: batch statistics want no odd rest."""
    pieces = math.ceil(count / largest)
    bounds = [round(i * count / pieces) for i in range(pieces + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The fused optimizers walk memory, not indices: a slot must lie in memory as its parameter does (channels_last)."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _optimizer(member: MemberSpec, network: nn.Module) -> torch.optim.Optimizer:
    recipe = member.optimizer
    if isinstance(recipe, AdamW):
        return torch.optim.AdamW(network.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(
        network.parameters(),
        recipe.lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=nesterov,
        fused=True,
    )


@torch.inference_mode()
def outputs(network: Network, images: Tensor, rows: Tensor | Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) and features (n, D) of `rows`, float32 on the CPU, in evaluation mode."""
    network.eval()
    index = torch.as_tensor(np.asarray(rows))
    logits, features = [], []
    for at in range(0, len(index), EVAL_BATCH):
        found = network.features(to_float(images[index[at : at + EVAL_BATCH]].to(device)))
        logits.append(network.head(found).float().cpu())
        features.append(found.float().cpu())
    return torch.cat(logits), torch.cat(features)
