"""Run each training step on a GPU as one CUDA graph, which replaces many small kernel launches by one.

The step is one function over tensors with fixed addresses. A GPU captures it once and replays it. Other devices can run the
function directly, which is how it is tested.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakMethod

import numpy as np
import torch
from torch import Tensor, nn

from workers.config.extensions import Augmentation, Labels, is_reference, load_reference
from workers.config.specs import MemberSpec, StudentSpec, TrainSpec
from workers.errors import ConclaveError, UserInputError
from workers.training.memory import is_out_of_memory
from workers.training.objective import NO_OTHERS

CAPTURING_DEVICES = ("cuda",)
WARM_UPS = 3  # steps before the capture, in which libraries choose kernels and optimizers create their state
FUSED = (torch.optim.SGD, torch.optim.AdamW)
Captured = TypeVar("Captured")
Step = Callable[[Tensor, Labels, Tensor | None], tuple[Tensor, Tensor]]


class NotCapturedError(ConclaveError):
    """A GPU cannot capture a function. A failed step leaves the network and the optimizer unchanged."""


def why_not_captured(recipe: MemberSpec, spec: TrainSpec, optimizer: torch.optim.Optimizer, passes: int) -> str | None:
    """Return the reason that a training's steps cannot be captured, or None if they can.

    Args:
        recipe: The recipe.
        spec: Settings shared by all trainings.
        optimizer: The optimizer.
        passes: Number of backward passes per step.
    """
    reasons = {
        "a step has several micro-batches": passes > 1,
        "gradients are clipped": spec.clip is not None,
        "a student asks its teacher": isinstance(recipe, StudentSpec),
        "the optimizer is the team's own": not (isinstance(optimizer, FUSED) and optimizer.defaults.get("fused")),
        "the custom network does not declare `can_be_captured = True`": not _can_be_captured(recipe.arch),
        "the custom loss does not declare `can_be_captured = True`": not _can_be_captured(recipe.loss),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _can_be_captured(name: str) -> bool:
    """Return whether a network or a loss is built in, or declares that it may run in a CUDA graph.

    A graph repeats the kernels of one call: a counter that custom code keeps in Python would stay as it was, without a word.
    """
    return not is_reference(name) or bool(getattr(load_reference(name), "can_be_captured", False))


def mixes(augmentations: Sequence[Augmentation]) -> bool:
    """Return whether any augmentation mixes images."""
    return any(type(one).mix is not Augmentation.mix for one in augmentations)


@dataclass
class CapturedStep:
    """A training step over tensors with fixed addresses. A GPU replays it as a CUDA graph.

    Attributes:
        step: Takes a step on images (N, 3, H, W), labels and weights; returns the mean loss and the number of correct answers.
            A weak reference: its owner holds this object, and a cycle would keep the graph's memory alive.
        network: The network.
        optimizer: Its optimizer.
        mixes: Whether images are mixed, so that the labels have two parts.
    """

    step: WeakMethod[Step]
    network: nn.Module
    optimizer: torch.optim.Optimizer
    mixes: bool
    graph: torch.cuda.CUDAGraph | None = field(default=None, init=False)
    _inputs: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _outputs: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def __call__(self, x: Tensor, labels: Labels, weights: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
        """Take a step at learning rate `rate`. The next step overwrites the returned tensors."""
        given = {"x": x, "first": labels.first, "rate": torch.tensor(rate)}
        if self.mixes:
            given |= {"second": labels.second, "share": torch.tensor(labels.share)}
        if weights is not None:
            given["weights"] = weights
            given |= {"other": _others(labels)} if self.mixes else {}
        if not self._inputs:
            self._inputs = {name: value.to(x.device, copy=True) for name, value in given.items()}
        for name, value in given.items():
            self._inputs[name].copy_(value, non_blocking=True)
        if x.device.type != "cuda":
            return self._compute()
        if self.graph is None:
            self._capture()
        assert self.graph is not None
        assert self._outputs is not None
        self.graph.replay()
        return self._outputs

    def _compute(self) -> tuple[Tensor, Tensor]:
        """Take a step on the current inputs. The graph captures this function."""
        held = self._inputs
        labels = Labels(held["first"], held["first"])
        if self.mixes:
            labels = Labels(held["first"], held["second"], held["share"], held.get("other"))
        for group in self.optimizer.param_groups:
            group["lr"] = held["rate"]
        step = self.step()
        assert step is not None
        return step(held["x"], labels, held.get("weights"))

    def _capture(self) -> None:
        """Capture the step. Leaves the network and the optimizer unchanged, even if it fails."""
        try:
            graph = torch.cuda.CUDAGraph()
            self._outputs = capture(graph, self._compute, self._warming_up())
        except BaseException:
            self.optimizer.zero_grad(set_to_none=True)  # gradients may lie in the graph's memory, which was never written
            raise
        finally:
            self._let_capture(False)
        self.graph = graph

    @contextmanager
    def _warming_up(self) -> Iterator[None]:
        """Wrap the warm-up steps. Raises NotCapturedError if they draw on the host or replace buffers."""
        before, there = _host_draws(), dict(_named(self.network))
        with unchanged(self.network, self.optimizer):
            yield
            if _host_draws() != before:
                raise NotCapturedError("the network draws random numbers on the host")
            if any(tensor is not there.get(name) for name, tensor in _named(self.network)):
                raise NotCapturedError("the network replaces its buffers instead of writing into them")
        self._let_capture(True)

    def _let_capture(self, capturable: bool) -> None:
        """Mark the optimizer as capturable for a capture only: in other steps the flag makes it warn."""
        for settings in (*self.optimizer.param_groups, self.optimizer.defaults):
            if "capturable" in settings:
                settings["capturable"] = capturable


def _others(labels: Labels) -> Tensor:
    """Return the indices of the mixed-in images. Raises UserInputError if an augmentation does not report them."""
    if labels.other is not None:
        return labels.other
    if labels.share != 1:
        raise UserInputError(NO_OTHERS)
    return torch.arange(len(labels.first), device=labels.first.device)


def _host_draws() -> tuple[Any, ...]:
    """Return the states of the host's random number generators."""
    _, key, *place = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), np.asarray(key).tolist(), place


def capture(graph: torch.cuda.CUDAGraph, compute: Callable[[], Captured], around: AbstractContextManager[None]) -> Captured:
    """Capture a function after a few warm-up calls within `around`. Return the tensors that replays write.

    Raises:
        NotCapturedError: If the function cannot be captured, for example because a custom network reads a value on the host.
    """
    try:
        with around:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UPS):
                        compute()
            finally:
                torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):  # left even on errors
            return compute()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise NotCapturedError(_first_cause(error)) from error


def _first_cause(error: BaseException) -> str:
    """Return the first line of the original error: ending a failed capture raises another error on top."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]


@contextmanager
def unchanged(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Restore the tensors of a network and its optimizer, in place, and torch's random state on exit.

    Optimizer state created in between is set to zero. The fused optimizers start from zero, so their first step is the same.
    """
    weights = {name: (tensor, tensor.detach().clone()) for name, tensor in _named(network)}
    state = {(parameter, name): value.clone() for parameter, name, value in _tensors(optimizer)}
    devices = {tensor.device for tensor, _ in weights.values() if tensor.is_cuda}
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        with torch.no_grad():
            for name, tensor in _named(network):
                tensor.copy_(weights[name][1])
            for parameter, name, value in _tensors(optimizer):
                before = state.get((parameter, name))
                value.zero_() if before is None else value.copy_(before)


def _named(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, str, Tensor]]:
    """Yield each tensor of an optimizer's state as (parameter, name, tensor)."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                yield parameter, name, value
