"""A recipe's optimizer, its learning rate at every step, and its state as plain tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from workers.recipe import AdamW, OneCycleSchedule, StepSchedule
from workers.spec import MemberSpec, TrainSpec


def learning_rate(spec: TrainSpec, member: MemberSpec, step: int, steps: int) -> float:
    """The rate at optimizer step `step` (from 0), with `steps` steps an epoch. one_cycle is torch's OneCycleLR.

    With `snapshots` the rate falls by a cosine in each cycle and starts anew (Huang et al. 2017), whatever the schedule; lower
    than at first where `cycles` says so.
    """
    base, schedule = member.optimizer.lr, spec.schedule
    if member.snapshots > 1:
        ends = [0, *(end * steps for end in member.cycle_ends(spec.epochs))]
        start, end = next(pair for pair in itertools.pairwise(ends) if step < pair[1])
        top = base * member.cycles.rate if member.cycles and start else base
        return _cosine(top, 0.0, (step - start) / (end - start))
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


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The fused optimizers walk memory, not indices: a slot must lie in memory as its parameter does (channels_last)."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def make_optimizer(member: MemberSpec, network: nn.Module) -> torch.optim.Optimizer:
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


def slots(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by `INDEX|NAME`; the learning rate is not among them, it follows from the step."""
    return {
        f"{i}|{name}": value
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_slots(optimizer: torch.optim.Optimizer, network: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put back what `slots` gave."""
    parameters = list(network.parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        index, name = key.split("|")
        state.setdefault(int(index), {})[name] = _laid_out_like(parameters[int(index)], value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
