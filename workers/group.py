"""The processes that train one network together (PyTorch's DDP), and the one that trains alone.

Each takes its share of every batch; gradients and batch statistics are those of the whole batch, so that the result is a
single process's up to rounding. What is decided on is summed over all first, so that nobody goes on alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workers.models import Network


class Group:
    """One process alone: `rank` 0 of `size` 1."""

    rank, size = 0, 1

    def together(self, network: Network) -> Network:
        """The network with batch statistics over all processes."""
        return network

    def model(self, network: Network) -> nn.Module:
        """What to call for logits, so that gradients become those of the whole batch."""
        return network

    def parts(self, rows: int, largest: int) -> list[slice]:
        """A batch of so many rows in micro-batches of at most `largest`: this process's share of each.

        Batch statistics are a micro-batch's, so what is one to a single process is one to all of them together.
        """
        return [self._share(part) for part in pieces(rows, largest)]

    def _share(self, part: slice) -> slice:
        count = part.stop - part.start
        first, last = (part.start + round(count * rank / self.size) for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    def not_yet(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Within it a backward pass adds to gradients that are not exchanged yet: another one of this step follows."""
        return nullcontext()

    def each(self, *values: Tensor | float) -> list[list[float]]:
        """Every process's values, by rank; all have to ask for them at the same step."""
        return [[float(value) for value in values]]

    def total(self, *values: Tensor | float) -> list[float]:
        """Each value's sum over all processes; all have to ask for it at the same step."""
        return [sum(of) for of in zip(*self.each(*values), strict=True)]


class Several(Group):
    """One of several, in the process group that torch.distributed was set up with."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def together(self, network: Network) -> Network:
        if next(network.parameters()).device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]
        for module in [m for m in network.modules() if isinstance(m, _BatchNorm)]:
            module.__class__ = SummedBatchNorm  # torch's own SyncBatchNorm is for GPUs alone
        return network

    def model(self, network: Network) -> nn.Module:
        return nn.parallel.DistributedDataParallel(network, forward_sync_buffers=False)

    def not_yet(self, model: nn.Module) -> AbstractContextManager[Any]:
        return model.no_sync()  # type: ignore[operator, no-any-return]

    def each(self, *values: Tensor | float) -> list[list[float]]:
        ours = torch.tensor([float(value) for value in values], dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            ours = ours.cuda()
        found = [torch.empty_like(ours) for _ in range(self.size)]
        distributed.all_gather(found, ours)
        return [of.tolist() for of in found]


ALONE = Group()


class _Sum(torch.autograd.Function):
    """Over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class SummedBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of the batches of all processes together: (n, C, ...) -> the same shape."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any: it takes the place of a norm that has looked."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return super().forward(input)
        x, channels = input.float(), input.shape[1]
        others = [dim for dim in range(x.dim()) if dim != 1]
        sums = torch.cat([x.sum(others), x.square().sum(others), x.new_tensor([x.numel() / channels])])
        first, second, count = _Sum.apply(sums).split([channels, channels, 1])
        mean = first / count
        variance = (second / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1), share)
        normal: Tensor = (x - _wide(mean, x)) * _wide((variance + self.eps).rsqrt(), x)
        if self.affine:
            normal = normal * _wide(self.weight, x) + _wide(self.bias, x)
        return normal.to(input.dtype)


def _wide(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.reshape(1, -1, *[1] * (x.dim() - 2))


def pieces(count: int, largest: int) -> Iterator[slice]:
    """Slices of equal length (give or take one), none longer than `largest`: batch statistics want no odd rest."""
    number = math.ceil(count / largest)
    bounds = [round(i * count / number) for i in range(number + 1)]
    return (slice(a, b) for a, b in itertools.pairwise(bounds))
