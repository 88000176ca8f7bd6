"""Compute the learning rate of each step, make a recipe's optimizer, and keep its state as plain tensors."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from workers.config.specs import MemberSpec, TrainSpec
from workers.errors import ConclaveError

TO_PLAIN, TO_CHANNELS_LAST = (0, 2, 3, 1), (0, 3, 1, 2)  # orders of the axes of a tensor in channels_last
AXES = 4  # of what can lie in channels_last


def learning_rate(spec: TrainSpec, recipe: MemberSpec, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of an optimizer step.

    With snapshots, the rate falls by a cosine in each cycle and starts anew, whatever the schedule (Huang et al. 2017,
    arXiv:1704.00109); `cycles.rate` lowers the later starts.

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
    _leave_the_compiler_out()
    return recipe.optimizer.make(network.parameters())


def take_optimizer_step(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer update its parameters, and forget the gradients.

    On a CPU, torch's fused optimizers copy each tensor in channels_last, which takes as long as the update. So they are shown the
    same memory as if its axes were in plain order. Elements are updated one by one: the result is the same.

    Torch's `step` first tells its compiler to keep out, and imports it for that, which takes a process more than a second. So the
    function within is called.
    """
    is_fused = _is_fused(optimizer)
    shown = [p for group in optimizer.param_groups for p in group["params"] if is_fused and _is_copied(p)]
    for parameter in shown:
        _reorder(optimizer, parameter, TO_PLAIN)
    try:
        if is_fused:
            with torch.no_grad():
                inspect.unwrap(type(optimizer).step)(optimizer)
        else:
            optimizer.step()
    finally:
        for parameter in shown:
            _reorder(optimizer, parameter, TO_CHANNELS_LAST)
    optimizer.zero_grad(set_to_none=True)


def _leave_the_compiler_out() -> None:
    """Let torch's optimizers do without its compiler, which they would import to tell it to keep out.

    Torch keeps what it has told so beside each function, under this name. Where it is kept elsewhere, the compiler is imported.
    """
    base = torch.optim.Optimizer
    for method in (base.add_param_group, base.zero_grad, base.state_dict, base.load_state_dict):
        function = inspect.unwrap(method)
        function.__dict__.setdefault("__dynamo_disable", function)


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    is_torchs = type(optimizer) in (torch.optim.SGD, torch.optim.AdamW)  # a subclass may look at the order of the axes
    return is_torchs and bool(optimizer.defaults.get("fused"))


def _is_copied(parameter: Tensor) -> bool:
    """Return whether a parameter and its gradient lie in channels_last, on a CPU."""
    gradient = parameter.grad
    if gradient is None or parameter.device.type != "cpu" or parameter.dim() != AXES or parameter.is_contiguous():
        return False
    return all(tensor.permute(TO_PLAIN).is_contiguous() for tensor in (parameter, gradient))


def _reorder(optimizer: torch.optim.Optimizer, parameter: Tensor, axes: tuple[int, ...]) -> None:
    """Name the axes of a parameter, its gradient and its state in another order. Nothing in memory changes."""
    gradient, parameter.grad = parameter.grad, None
    parameter.data = parameter.data.permute(axes)
    parameter.grad = None if gradient is None else gradient.permute(axes)
    state = optimizer.state[parameter]
    state.update({name: value.permute(axes) for name, value in state.items() if getattr(value, "ndim", 0) == AXES})


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors by `INDEX|NAME`. The learning rate is not among them: it follows from the step.

    Raises:
        ConclaveError: If an optimizer of the user's own keeps something else, which no checkpoint could bring back.
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
