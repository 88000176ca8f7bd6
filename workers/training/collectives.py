"""Train one network with several processes through PyTorch's DDP, or with a single process.

Each process takes its share of every batch. Gradients and batch norm statistics cover the whole batch, so the result equals
a single process's up to rounding. Values that control the training are first summed over all processes, so that all decide alike.
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

from workers.models.network import Network


class SingleProcess:
    """One process that trains alone: `rank` 0 of `size` 1. `ProcessGroup` has the same methods for several processes."""

    rank, size = 0, 1

    def synchronize_batchnorm(self, network: Network) -> Network:
        """Return the network with batch norm statistics over all processes."""
        return network

    def wrap(self, network: Network) -> nn.Module:
        """Return the module to call for logits; its gradients cover the whole batch."""
        return network

    def micro_batches(self, rows: int, largest: int) -> list[slice]:
        """Divide a batch of `rows` rows into micro-batches of at most `largest`.

        Batch norm statistics are per micro-batch, so all processes share each micro-batch instead of taking whole ones.

        Returns:
            This process's share of each micro-batch.
        """
        return [self._share(part) for part in equal_slices(rows, largest)]

    def _share(self, part: slice) -> slice:
        count = part.stop - part.start
        first, last = (part.start + round(count * rank / self.size) for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context for all backward passes of a step but the last: gradients add up without being exchanged."""
        return nullcontext()

    def all_gather(self, *values: Tensor | float) -> list[list[float]]:
        """Return the values of each process, by rank. All processes must call this at the same step."""
        return [[float(value) for value in values]]

    def all_reduce(self, *values: Tensor | float) -> list[float]:
        """Return the sum of each value over all processes. All processes must call this at the same step."""
        return [sum(of_value) for of_value in zip(*self.all_gather(*values), strict=True)]


class ProcessGroup(SingleProcess):
    """One of several processes, in torch.distributed's default process group."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def synchronize_batchnorm(self, network: Network) -> Network:
        """Return the network with batch norm statistics over all processes; torch's SyncBatchNorm supports only GPUs."""
        if next(network.parameters()).device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]
        for module in [m for m in network.modules() if isinstance(m, _BatchNorm)]:
            module.__class__ = SummedBatchNorm
        return network

    def wrap(self, network: Network) -> nn.Module:
        """Return the network wrapped in DDP."""
        return nn.parallel.DistributedDataParallel(network, forward_sync_buffers=False)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Keep DDP from exchanging gradients within this context."""
        return model.no_sync()  # type: ignore[operator, no-any-return]

    def all_gather(self, *values: Tensor | float) -> list[list[float]]:
        """Return the values of each process, by rank."""
        local = torch.tensor([float(value) for value in values], dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            local = local.cuda()
        by_process = [torch.empty_like(local) for _ in range(self.size)]
        distributed.all_gather(by_process, local)
        return [tensor.tolist() for tensor in by_process]


SINGLE_PROCESS = SingleProcess()


class _Sum(torch.autograd.Function):
    """Sums a tensor over all processes, and its gradient too."""

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
    """Batch norm with statistics over the batches of all processes: (n, C, ...) -> the same shape."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any shape: this class replaces batch norms of any dimension."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize a batch."""
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
        normal: Tensor = (x - _broadcast(mean, x)) * _broadcast((variance + self.eps).rsqrt(), x)
        if self.affine:
            normal = normal * _broadcast(self.weight, x) + _broadcast(self.bias, x)
        return normal.to(input.dtype)


def _broadcast(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.reshape(1, -1, *[1] * (x.dim() - 2))


def equal_slices(count: int, largest: int) -> Iterator[slice]:
    """Yield near-equal slices of at most `largest`: a short last slice would harm batch norm statistics."""
    number = math.ceil(count / largest)
    bounds = [round(i * count / number) for i in range(number + 1)]
    return (slice(a, b) for a, b in itertools.pairwise(bounds))
