"""Combine the members' outputs, as torch modules: (features, logits) in, log-probabilities (N, C) out.

`STORED_NAMES` are the names that exported files call the combiners by. They never change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fusion.metrics.calibration import TINY


class MeanCombiner(nn.Module):
    """The weighted mean of the members' probabilities: vote, weighted and single members.

    Args:
        weights: (M,).
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights: Tensor
        self.register_buffer("weights", weights)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        """Combine the members' outputs."""
        pooled = (torch.stack([x.softmax(1) for x in logits]) * self.weights[:, None, None]).sum(0)
        return pooled.clamp(min=TINY).log()


class LogitMeanCombiner(nn.Module):
    """The weighted mean of the members' logits, with a temperature per member: vote_logits.

    Args:
        weights: (M,).
        temperatures: (M,).
    """

    def __init__(self, weights: Tensor, temperatures: Tensor) -> None:
        super().__init__()
        self.weights: Tensor
        self.temperatures: Tensor
        self.register_buffer("weights", weights)
        self.register_buffer("temperatures", temperatures)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        """Combine the members' outputs."""
        share = (self.weights / self.temperatures)[:, None, None]
        return (torch.stack(logits) * share).sum(0).log_softmax(1)


class ConcatCombiner(nn.Module):
    """One linear head on the concatenated features: concat.

    Args:
        coef: (C, sum of D_m).
        intercept: (C,).
    """

    def __init__(self, coef: Tensor, intercept: Tensor) -> None:
        super().__init__()
        self.coef: Tensor
        self.intercept: Tensor
        self.register_buffer("coef", coef)
        self.register_buffer("intercept", intercept)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        """Combine the members' outputs."""
        return (torch.cat(features, 1) @ self.coef.T + self.intercept).log_softmax(1)


class StackCombiner(nn.Module):
    """A logistic regression on log-probabilities, with a temperature per member: stack.

    Args:
        coef: (C, M*C).
        intercept: (C,).
        temperatures: (M,).
    """

    def __init__(self, coef: Tensor, intercept: Tensor, temperatures: Tensor) -> None:
        super().__init__()
        self.coef: Tensor
        self.intercept: Tensor
        self.temperatures: Tensor
        self.register_buffer("coef", coef)
        self.register_buffer("intercept", intercept)
        self.register_buffer("temperatures", temperatures)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        """Combine the members' outputs."""
        floor = float(np.log(TINY))
        pairs = zip(logits, self.temperatures, strict=True)
        x = [(z / t).log_softmax(1).clamp(min=floor) for z, t in pairs]
        return (torch.cat(x, 1) @ self.coef.T + self.intercept).log_softmax(1)


class BagCombiner(StackCombiner):
    """Combine bags of networks by a stack; each member has K networks in a row. This is the module of stack_bag."""

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        """Combine the networks' outputs."""
        size = len(logits) // len(self.temperatures)
        starts = range(0, len(logits), size)
        bags = [torch.stack([z.softmax(1) for z in logits[start : start + size]]).mean(0) for start in starts]
        return super().forward(features, [bag.clamp(min=TINY).log() for bag in bags])


class CascadeCombiner(nn.Module):
    """Pools of the first k members, each at its temperature; the first that is confident enough answers: cascade.

    The members stand in the order in which they are asked.

    Args:
        temperatures: (M,) of the pools.
        threshold: Scalar; the confidence from which on a pool answers.
    """

    def __init__(self, temperatures: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self.temperatures: Tensor
        self.threshold: Tensor
        self.register_buffer("temperatures", temperatures)
        self.register_buffer("threshold", threshold)

    def forward(self, features: list[Tensor], logits: list[Tensor]) -> Tensor:
        """Combine the outputs of all members at once, as one exported file has it."""
        answer = self.stage(torch.stack([z.softmax(1) for z in logits]).mean(0), len(logits) - 1)
        for k in range(len(logits) - 2, -1, -1):
            earlier = self.stage(torch.stack([z.softmax(1) for z in logits[: k + 1]]).mean(0), k)
            answer = torch.where(self.is_confident(earlier)[:, None], earlier, answer)
        return answer

    def stage(self, pooled: Tensor, k: int) -> Tensor:
        """Calibrate the pool (N, C) of the first k + 1 members; return log-probabilities."""
        return (pooled.clamp(min=TINY).log() / self.temperatures[k]).log_softmax(1)

    def is_confident(self, answer: Tensor) -> Tensor:
        """Return which rows of log-probabilities (N, C) are confident enough, (N,)."""
        return answer.amax(1) >= self.threshold.log()

    def ask_in_turn(self, members: Sequence[nn.Module], x: Tensor) -> Tensor:
        """Compute the same, asking each member only for the rows that still need it."""
        rows, total = torch.arange(len(x), device=x.device), torch.zeros((), device=x.device)
        answer: Tensor | None = None
        for k, member in enumerate(members):
            total = total + member(x[rows]).softmax(1)
            current = self.stage(total / (k + 1), k)
            answer = current if answer is None else answer.index_copy(0, rows, current)
            is_open = ~self.is_confident(current)
            rows, total = rows[is_open], total[is_open]
            if not len(rows):
                break
        assert answer is not None
        return answer


STORED_NAMES: dict[str, type[nn.Module]] = {
    "Average": MeanCombiner,
    "LogitAverage": LogitMeanCombiner,
    "Linear": ConcatCombiner,
    "Meta": StackCombiner,
    "Bags": BagCombiner,
    "Cascaded": CascadeCombiner,
}


def stored_name(combiner: nn.Module) -> str:
    """Return the name by which exported files call a combiner."""
    return next(name for name, combiner_class in STORED_NAMES.items() if type(combiner) is combiner_class)


def restore_combiner(name: str, buffers: dict[str, Tensor]) -> nn.Module:
    """Return an exported combiner from its stored name and its buffers. Raises KeyError for a name that is not known."""
    return STORED_NAMES[name](**buffers)
