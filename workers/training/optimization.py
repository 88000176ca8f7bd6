"""Compute learning rates, build a recipe's optimizer, and save its state as plain tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from workers.config.specs import MemberSpec, TrainSpec
from workers.errors import ConclaveError


def learning_rate(spec: TrainSpec, recipe: MemberSpec, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of an optimizer step.

    With snapshots, the rate follows a cosine in each cycle and then restarts, whatever the schedule (Huang et al. (2017),
    arXiv:1704.00109); `cycles.rate` scales the rate of the later cycles.

    Args:
        spec: The schedule and the number of epochs.
        recipe: The optimizer, and the cycles of snapshots.
        step: Number of the step, from 0, over the whole training.
        steps_per_epoch: Number of steps in an epoch.
    """
    base = recipe.optimizer.lr
    if recipe.snapshots == 1:
        return spec.schedule.rate(base, step, spec.epochs * steps_per_epoch, steps_per_epoch)
    ends = [0, *(end * steps_per_epoch for end in recipe.cycle_ends(spec.epochs))]
    start, end = next(pair for pair in itertools.pairwise(ends) if step < pair[1])
    top = base * recipe.cycles.rate if recipe.cycles and start else base
    return top * (1 + math.cos(math.pi * (step - start) / (end - start))) / 2


def make_optimizer(recipe: MemberSpec, network: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for the parameters of a network."""
    return recipe.optimizer.make(network.parameters())


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors by `INDEX|NAME`, without the learning rate, which follows from the step.

    Raises:
        ConclaveError: If a custom optimizer keeps state other than tensors, which a checkpoint cannot restore.
    """
    for state in optimizer.state_dict()["state"].values():
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise ConclaveError(
                    f"{type(optimizer).__name__} keeps {name} as {type(value).__name__}: its state has to be tensors, "
                    "so that a training can go on from a checkpoint."
                )
    return {
        f"{i}|{name}": value
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_state` returned. Raises KeyError, IndexError or ValueError for another network's state."""
    parameters = list(network.parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        index, name = key.split("|")
        state.setdefault(int(index), {})[name] = _laid_out_like(parameters[int(index)], value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Give a state tensor its parameter's memory layout: fused optimizers walk memory, not indices (channels_last)."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
