"""Build a recipe's optimizer, compute its learning rate at every step, and keep its state as plain tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from workers.config.recipe import AdamW, OneCycleSchedule, StepSchedule
from workers.config.specs import MemberSpec, TrainSpec


def learning_rate(spec: TrainSpec, member: MemberSpec, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of an optimizer step.

    `one_cycle` equals torch's OneCycleLR. With snapshots, the rate falls by a cosine in each cycle and starts anew, whatever the
    schedule (Huang et al. 2017, arXiv:1704.00109); `cycles.rate` lowers the later starts.

    Args:
        spec: The schedule and the number of epochs.
        member: The optimizer, and the cycles of snapshots.
        step: Number of the step, from 0, over the whole training.
        steps_per_epoch: Number of steps in an epoch.
    """
    base, schedule = member.optimizer.lr, spec.schedule
    if member.snapshots > 1:
        ends = [0, *(end * steps_per_epoch for end in member.cycle_ends(spec.epochs))]
        start, end = next(pair for pair in itertools.pairwise(ends) if step < pair[1])
        top = base * member.cycles.rate if member.cycles and start else base
        return _cosine(top, 0.0, (step - start) / (end - start))
    if isinstance(schedule, StepSchedule):
        return base * float(schedule.factor) ** (step // steps_per_epoch // schedule.every)
    total = spec.epochs * steps_per_epoch
    if isinstance(schedule, OneCycleSchedule):
        peak = max(schedule.warmup * total - 1, 1e-9)
        if step <= peak:
            return _cosine(base / 25, base, step / peak)
        return _cosine(base, base / 25e4, (step - peak) / max(total - 1 - peak, 1e-9))
    return _cosine(base, 0.0, step / total)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(member: MemberSpec, network: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer, in torch's fused form, for the parameters of a network."""
    recipe = member.optimizer
    if isinstance(recipe, AdamW):
        return torch.optim.AdamW(network.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        network.parameters(),
        recipe.lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        fused=True,
    )


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors by `INDEX|NAME`. The learning rate is not among them: it follows from the step."""
    return {
        f"{i}|{name}": value
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` returned. Raises KeyError, IndexError or ValueError for the state of another network."""
    parameters = list(network.parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        index, name = key.split("|")
        state.setdefault(int(index), {})[name] = _laid_out_like(parameters[int(index)], value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Lay out a state tensor in memory like its parameter: the fused optimizers walk memory, not indices (channels_last)."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
