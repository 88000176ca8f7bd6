"""One training, from fresh weights to final ones: pure of Ray and MLflow, readable from top to bottom.

Everything random derives from (seed, epoch, step), so a fit resumed from a checkpoint between two steps goes on bit for
bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.augment import Labels, augment, to_float
from workers.average import Averaged
from workers.checkpoint import Checkpoints
from workers.compiled import compiled
from workers.distill import Teacher, distance
from workers.errors import Corrupt, Diverged, Stopped
from workers.evaluate import outputs, resolve_precision
from workers.faults import reach
from workers.group import ALONE, Group
from workers.job import derive_seed
from workers.models import Network, memory_format
from workers.optim import learning_rate, load_slots, make_optimizer, slots
from workers.recipe import Ema
from workers.spec import MemberSpec, StudentSpec, TrainSpec
from workers.watcher import Epoch, Watcher

CHEAP, SHARE = 0.1, 0.02  # seconds of a checkpoint that is always written; share of the time that others may take


@dataclass(frozen=True)
class FitData:
    """Images (N, H, W, 3) uint8 and labels (N,) of the whole store; the rows to fit, those to watch, those to stop or to score
    by; a student's teacher."""

    images: Tensor
    labels: Tensor
    fit: Tensor
    watch: Tensor | None
    stop: Tensor | None = None
    teacher: Teacher | None = None


@dataclass
class Fitted:
    """What training gives: the network with its final weights, the history, and how it came about."""

    network: Network
    history: list[Epoch]
    micro_batch: int
    precision: str
    resumed_from: int

    def seconds(self, first: int = 0) -> float:
        """Seconds of training from epoch `first` on, those before an interruption included, evaluation left out."""
        return sum(epoch["seconds"] for epoch in self.history[first:])


@dataclass
class _Sums:
    """What the steps of an unfinished epoch gave so far: of each lane, its loss and its right answers."""

    loss: list[float]
    correct: list[float]
    seconds: float = 0.0


@dataclass
class Trainer:
    """Trains `network`, all of whose results are those of one lane; a pack has several (workers/packed.py)."""

    network: Network
    data: FitData
    member: MemberSpec
    spec: TrainSpec
    seed: int
    device: torch.device
    micro: int
    checkpoints: Checkpoints | None
    watcher: Watcher
    checkpoint_seconds: float
    group: Group = ALONE
    best: dict[str, Tensor] = field(default_factory=dict)

    lanes, lane = 1, 0  # how many are trained at once, and which of them this fit is of

    def __post_init__(self) -> None:
        self.histories: list[list[Epoch]] = [[] for _ in range(self.lanes)]
        self.precision = resolve_precision(self.spec.precision, self.device)
        self.format = self._memory_format()
        self.network = self.group.together(self.network.to(self.device, memory_format=self.format))  # type: ignore[call-overload]
        self.model = self.group.model(self.network)
        if self.spec.compile:
            several = self.spec.accumulate > 1 or self.micro < self.spec.batch_size
            self.model = compiled(self.model, self.spec.compile, self.device, several)
        if self.data.teacher:
            self.data.teacher.to(self.device, self.format)
        self.optimizer = make_optimizer(self.member, self.network)
        self.averages: dict[str, Averaged] = {}
        if self.spec.ema:
            self.averages["ema"] = Averaged(self.network, Ema(decay=self.spec.ema), self.spec.epochs)
        if self.member.average:
            self.averages["average"] = Averaged(self.network, self.member.average, self.spec.epochs)
        self.batch = min(self.spec.batch_size * self.spec.accumulate, len(self.data.fit))
        self.steps = len(self.data.fit) // self.batch  # the ragged rest of an epoch's order is left out

    @property
    def history(self) -> list[Epoch]:
        return self.histories[self.lane]

    def run(self) -> Fitted:
        step, sums = self._resume()
        start = len(self.history)
        self.saved, self.saving = time.monotonic(), 0.0
        self.watcher.resumed(self.history)
        last = self.member.cycle_ends(self.spec.epochs)[self.member.cycle - 1]
        for epoch in range(start, last):
            if self._stopped():
                break
            trained, watched = self._epoch(epoch, step, sums or self._no_sums()), self._watch()
            step, sums = 0, None
            now = {"time": float(round(time.time() * 1000))}
            for history, *metrics in zip(self.histories, trained, watched, strict=True):
                history.append(metrics[0] | metrics[1] | now)
            for average in self.averages.values():
                average.epoch(self.network, len(self.history))
            self._remember()
            if epoch + 1 == last or self._worth_while():
                self._save()
            self.watcher.epoch(epoch, self.history[-1])
        if self.best:
            self._final().load_state_dict(self.best)
        if self.member.averaged:
            torch.manual_seed(derive_seed(self.seed, "settle"))
            self.averages["average"].settle(self._fit_images(), self.device)
        return Fitted(self._final(), self.history, self.micro, self.precision, start)

    def _final(self) -> Network:
        return self.averages["average"].network if self.member.averaged else self._watched()[self.lane]

    def _watched(self) -> list[Network]:
        """A network a lane."""
        return [self.averages["ema"].network if "ema" in self.averages else self.network]

    def _fit_images(self) -> Iterator[Tensor]:
        """All of them, shuffled, for a store may hold them class by class; in batches of one size, give or take one."""
        rows = self.data.fit[torch.randperm(len(self.data.fit))]
        for part in torch.tensor_split(rows, math.ceil(len(rows) / self.spec.batch_size)):
            yield to_float(self.data.images[part].to(self.device)).contiguous(memory_format=self.format)

    def _memory_format(self) -> torch.memory_format:
        return memory_format(self.network, self.device, self.precision)

    def _no_sums(self) -> _Sums:
        return _Sums([0.0] * self.lanes, [0.0] * self.lanes)

    def _epoch(self, epoch: int, first: int, sums: _Sums) -> list[Epoch]:
        """The epoch's steps from `first` on; `sums` are what those before it gave. Each lane's metrics."""
        self.network.train()
        rows = self._order(epoch)
        loss, correct = torch.tensor(sums.loss, device=self.device), torch.tensor(sums.correct, device=self.device)
        rate = learning_rate(self.spec, self.member, (epoch + 1) * self.steps - 1, self.steps)
        began = time.perf_counter() - sums.seconds
        for step in range(first, self.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.spec, self.member, epoch * self.steps + step, self.steps)
            step_loss, step_correct = self._step(epoch, step, rows[..., step * self.batch : (step + 1) * self.batch])
            loss += step_loss * _nan_at("fit.step")
            correct += step_correct
            self.watcher.step()
            if self.device.type == "cpu" or step % 16 == 0:  # a look at the loss makes a GPU wait
                self._look(step + 1, loss, correct, began)
        totals = self.group.total(*loss, *correct)
        if not (all(map(math.isfinite, totals)) and all(bool(p.isfinite().all()) for p in self.network.parameters())):
            raise Diverged(f"the loss or a weight is not finite after epoch {epoch + 1}")
        seconds, images = time.perf_counter() - began, self.steps * self.batch
        return [
            {
                "train/loss": total / self.steps,
                "train/accuracy": right / images,
                "train/lr": rate,
                "train/images_per_second": images / seconds,
                "seconds": seconds / self.lanes,  # what a lane costs
            }
            for total, right in zip(totals[: self.lanes], totals[self.lanes :], strict=True)
        ]

    def _order(self, epoch: int) -> Tensor:
        """The rows of an epoch's steps, one after another: (n,)."""
        return self._shuffled(epoch, self.seed)

    def _shuffled(self, epoch: int, seed: int) -> Tensor:
        order = self._generator(seed, epoch, "order", "cpu")
        return self.data.fit[torch.randperm(len(self.data.fit), generator=order)]

    def _look(self, step: int, loss: Tensor, correct: Tensor, began: float) -> None:
        """Between two steps, all together: is the loss finite, does somebody ask the fit to stop, is a checkpoint due?"""
        late = time.monotonic() - self.saved > self.checkpoint_seconds
        each = self.group.each(*loss, *correct, self.watcher.stop_asked(), late)
        *totals, stop, due = (sum(of) for of in zip(*each, strict=True))
        for total in totals[: self.lanes]:
            if not math.isfinite(total):
                raise Diverged(f"the loss is {total} in epoch {len(self.history) + 1}, up to step {step}")
        if step == self.steps and not stop:
            return  # the epoch's own checkpoint follows
        if stop or due:
            seconds = time.perf_counter() - began
            self._save(step, [_Sums(one[: self.lanes], one[self.lanes : -2], seconds) for one in each])
        if stop:
            raise Stopped(f"stopped in epoch {len(self.history) + 1} after step {step}; a checkpoint is written")

    def _step(self, epoch: int, step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step on `rows`, in micro-batches. Gives its mean loss and its count of right answers."""
        torch.manual_seed(derive_seed(self.seed, epoch, step, "dropout", *([self.group.rank] if self.group.rank else [])))
        x, targets = self._augmented(epoch, step, rows, self.seed)
        x = x.contiguous(memory_format=self.format)
        loss, correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        parts = self.group.parts(len(rows), self.micro)
        for part in parts:
            with self.group.not_yet(self.model) if part != parts[-1] else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    logits = self.model(x[part])
                    taught = self.data.teacher(x[part]) if self.data.teacher else None
                logits = logits.float()
                one = self._mixed_loss(logits, targets, part)
                if taught is not None and isinstance(self.member, StudentSpec):
                    one = self.member.soft * distance(logits, taught, self.member.temperature) + (1 - self.member.soft) * one
                one = one * (len(logits) / len(rows))
                (one * self.group.size).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean over processes
            loss += one.detach()
            correct += (logits.argmax(1) == targets[0][part]).sum()
        if self.spec.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.spec.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for average in self.averages.values():
            average.step(self.network)
        return loss, correct

    def _augmented(self, epoch: int, step: int, rows: Tensor, seed: int) -> tuple[Tensor, Labels]:
        images, labels = self.data.images[rows].to(self.device), self.data.labels[rows].to(self.device)
        return augment(images, labels, self.member.augment, self._generator(seed, epoch, step, self.device))

    def _mixed_loss(self, logits: Tensor, targets: Labels, part: slice) -> Tensor:
        first, second, share = targets
        loss = self._loss(logits, first[part])
        return loss if share == 1 else share * loss + (1 - share) * self._loss(logits, second[part])

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.member.label_smoothing)

    def _generator(self, seed: int, epoch: int, what: object, device: torch.device | str) -> torch.Generator:
        return torch.Generator(device).manual_seed(derive_seed(seed, epoch, what))

    def _watch(self) -> list[Epoch]:
        """Each lane's loss and accuracy on *fuse* rows, to be looked at; on the rows of `train.stop`, to stop by."""
        return [self._watch_one(network) for network in self._watched()]

    def _watch_one(self, network: Network) -> Epoch:
        watched: Epoch = {}
        for name, rows in (("fuse", self.data.watch), ("stop", self.data.stop)):
            if rows is not None:
                loss, accuracy = self._evaluate(network, rows)
                watched |= {f"{name}/loss": loss, f"{name}/accuracy": accuracy}
        return watched

    def _evaluate(self, network: Network, rows: Tensor) -> tuple[float, float]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits, _ = outputs(network, self.data.images, rows, self.device)
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

    def _save(self, step: int = 0, sums: Sequence[_Sums] = ()) -> None:
        """A checkpoint after `step` steps of the current epoch, with each process's sums; at an epoch's boundary `step` is 0."""
        began = self.saved = time.monotonic()
        if self.checkpoints is None or self.group.rank:
            return
        groups: dict[str, dict[str, Tensor]] = {"network": self.network.state_dict(), "optimizer": slots(self.optimizer)}
        groups |= {name: average.model.state_dict() for name, average in self.averages.items()}
        if self.best:
            groups["best"] = self.best
        record = {
            "histories": self.histories,
            "micro_batch": self.micro,
            "sums": [asdict(one) for one in sums],
            "average": self.member.averages() if "average" in self.averages else None,
        }
        self.checkpoints.save(len(self.history), step, groups, record)
        self.watcher.saved()
        self.saved = time.monotonic()
        self.saving = self.saved - began

    def _worth_while(self) -> bool:
        """Whether this epoch's checkpoint may be written: not where writing would take more than its share of the time. What a
        kill then costs is fifty times what a checkpoint takes, some seconds."""
        return self.saving < CHEAP or time.monotonic() - self.saved > self.saving / SHARE

    def _resume(self) -> tuple[int, _Sums | None]:
        """Take up the newest checkpoint: how many steps of the current epoch are done, and what they summed up to."""
        state = self.checkpoints.newest() if self.checkpoints else None
        if state is None:
            return 0, None
        try:
            self.network.load_state_dict(state.tensors["network"])
            load_slots(self.optimizer, self.network, state.tensors["optimizer"])
            if "average" in self.averages and state.record.get("average") != self.member.averages():
                del self.averages["average"]  # asked for, or asked for otherwise, when this fit was under way already
            for name, average in self.averages.items():
                average.model.load_state_dict(state.tensors[name])
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            raise Corrupt(f"{state.folder}: not a checkpoint of this network ({str(error).splitlines()[0]})") from None
        self.best = state.tensors.get("best", {})
        self.micro = min(self.micro, state.record["micro_batch"])
        self.histories = state.record["histories"]
        sums = state.record["sums"]
        return state.record["step"], _Sums(**sums[self.group.rank]) if sums else None


def _nan_at(point: str) -> float:
    """1, or NaN where a test asks for it."""
    return math.nan if reach(point) == "nan" else 1.0
