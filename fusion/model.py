"""FusedModel: raw uint8 images in, class probabilities out, as one torch module: preprocessing, members, combiner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from fusion.calibration import TINY
from fusion.cascade import Cascade
from fusion.concat import Concat
from fusion.fit import Fitted
from fusion.stacking import PlainStack, Stack, StackBag
from fusion.voting import Student, VoteLogits
from workers.augment import to_float
from workers.models import Network

N = TypeVar("N", covariant=True)


class Average(nn.Module):
    """Weighted mean of the members' probabilities: vote, weighted and single members."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights: Tensor
        self.register_buffer("weights", weights)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        pooled = (torch.stack([x.softmax(1) for x in logits]) * self.weights[:, None, None]).sum(0)
        return pooled.clamp(min=TINY).log()


class LogitAverage(nn.Module):
    """Weighted mean of the members' logits, a temperature a member: vote_logits."""

    def __init__(self, weights: Tensor, temperatures: Tensor) -> None:
        super().__init__()
        self.weights: Tensor
        self.temperatures: Tensor
        self.register_buffer("weights", weights)
        self.register_buffer("temperatures", temperatures)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        share = (self.weights / self.temperatures)[:, None, None]
        return (torch.stack(logits) * share).sum(0).log_softmax(1)


class Linear(nn.Module):
    """One head on the concatenated features: concat."""

    def __init__(self, coef: Tensor, intercept: Tensor) -> None:
        super().__init__()
        self.coef: Tensor
        self.intercept: Tensor
        self.register_buffer("coef", coef)
        self.register_buffer("intercept", intercept)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        return (torch.cat(features, 1) @ self.coef.T + self.intercept).log_softmax(1)


class Meta(nn.Module):
    """Logistic regression on log-probabilities, a temperature a member: stack."""

    def __init__(self, coef: Tensor, intercept: Tensor, temperatures: Tensor) -> None:
        super().__init__()
        self.coef: Tensor
        self.intercept: Tensor
        self.temperatures: Tensor
        self.register_buffer("coef", coef)
        self.register_buffer("intercept", intercept)
        self.register_buffer("temperatures", temperatures)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        floor = float(np.log(TINY))
        pairs = zip(logits, self.temperatures, strict=True)
        x = [(z / t).log_softmax(1).clamp(min=floor) for z, t in pairs]
        return (torch.cat(x, 1) @ self.coef.T + self.intercept).log_softmax(1)


class Bags(Meta):
    """The same over bags of networks, K in a row for each member: stack_bag."""

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        size = len(logits) // len(self.temperatures)
        bags = [torch.stack([z.softmax(1) for z in logits[at : at + size]]).mean(0) for at in range(0, len(logits), size)]
        return super().forward(features, [bag.clamp(min=TINY).log() for bag in bags])


class Cascaded(nn.Module):
    """Pools of the first k members, each at its temperature; the first that is confident enough speaks: cascade.

    Its members stand in the order in which they are asked.
    """

    def __init__(self, temperatures: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self.temperatures: Tensor
        self.threshold: Tensor
        self.register_buffer("temperatures", temperatures)
        self.register_buffer("threshold", threshold)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        """All at once, as one exported file has it."""
        answer = self.stage(torch.stack([z.softmax(1) for z in logits]).mean(0), len(logits) - 1)
        for k in range(len(logits) - 2, -1, -1):
            earlier = self.stage(torch.stack([z.softmax(1) for z in logits[: k + 1]]).mean(0), k)
            answer = torch.where(self.enough(earlier)[:, None], earlier, answer)
        return answer

    def stage(self, pooled: Tensor, k: int) -> Tensor:
        return (pooled.clamp(min=TINY).log() / self.temperatures[k]).log_softmax(1)

    def enough(self, answer: Tensor) -> Tensor:
        return answer.amax(1) >= self.threshold.log()

    def one_after_another(self, members: Sequence[nn.Module], x: Tensor) -> Tensor:
        """The same, each member asked for the rows that still need it alone."""
        rows, total = torch.arange(len(x), device=x.device), torch.zeros((), device=x.device)
        answer: Tensor | None = None
        for k, member in enumerate(members):
            total = total + member(x[rows]).softmax(1)
            now = self.stage(total / (k + 1), k)
            answer = now if answer is None else answer.index_copy(0, rows, now)
            open_ = ~self.enough(now)
            rows, total = rows[open_], total[open_]
            if not len(rows):
                break
        assert answer is not None
        return answer


class FusedModel(nn.Module):
    """(N, H, W, 3) uint8 -> (N, C) float32 probabilities."""

    def __init__(self, members: Sequence[nn.Module], combiner: nn.Module, temperature: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.combiner = combiner
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        x = to_float(images)
        if isinstance(self.combiner, Cascaded) and not torch.compiler.is_exporting():
            return self._last_stage(self.combiner.one_after_another(list(self.members), x))
        features = [cast(Network, member).features(x) for member in self.members]
        logits = [cast(Network, m).head(f) for m, f in zip(self.members, features, strict=True)]
        combined = cast(Tensor, self.combiner(features, logits))
        return self._last_stage(combined)

    def _last_stage(self, log_probabilities: Tensor) -> Tensor:
        """As `apply_temperature` does it, for which nothing is less likely than TINY: at a high temperature that counts."""
        return (log_probabilities.clamp(min=float(np.log(TINY))) / self.temperature).softmax(1)


@dataclass(frozen=True)
class Networks(Generic[N]):
    """What fusions are made of, or one thing about each of them (its spec, for one): full fits and fold fits by member."""

    full: Sequence[N]
    bags: Sequence[Sequence[N]] = ()
    student: N | None = None

    def used(self, fitted: Fitted) -> list[N]:
        """Those that a fusion asks, in the order in which it asks them; members without weight are left out."""
        if isinstance(fitted.method, Student):
            assert self.student is not None
            return [self.student]
        members = used_members(fitted, len(self.full))
        if isinstance(fitted.method, StackBag):
            return [network for i in members for network in self.bags[i]]
        return [self.full[i] for i in members]


def assemble(fitted: Fitted, networks: Networks[nn.Module]) -> FusedModel:
    """The fusion as a module."""
    combiner, members = _combiner(fitted.method, used_members(fitted, len(networks.full))), networks.used(fitted)
    return FusedModel(members, combiner, fitted.temperature).eval()


def used_members(fitted: Fitted, count: int) -> list[int]:
    weights = getattr(fitted.method, "weights_", None)
    if isinstance(fitted.method, Cascade):
        return [int(i) for i in fitted.method.order_]
    asked = fitted.members if fitted.members is not None else range(count)
    return [i for i in asked if weights is None or weights[i] > 0]


def _combiner(method: Any, used: list[int]) -> nn.Module:
    if isinstance(method, Concat):
        return Linear(_float(method.coef_), _float(method.intercept_))
    if isinstance(method, Cascade):
        return Cascaded(_float(method.temperatures_), _float(method.threshold_))
    if isinstance(method, VoteLogits):
        return LogitAverage(_float(method.weights_[used]), _float(method.temperatures_[used]))
    if isinstance(method, Student):
        return Average(torch.ones(1))
    if isinstance(method, Stack | PlainStack):
        kind = Bags if isinstance(method, StackBag) else Meta
        return kind(_float(method.coef_), _float(method.intercept_), _float(method.temperatures_))
    return Average(_float(method.weights_[used]))


def _float(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def combiner_like(kind: str, state: dict[str, Tensor]) -> nn.Module:
    """An exported combiner from its buffers."""
    kinds: dict[str, type[nn.Module]] = {k.__name__: k for k in (Average, LogitAverage, Linear, Meta, Bags, Cascaded)}
    return kinds[kind](**state)
