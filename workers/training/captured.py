"""Take the steps of a training on a GPU as one CUDA graph: small kernels are bound by their launches, and a graph has only one.

The step is one function over tensors that stay where they are. A GPU captures it once and replays it. Any other device can run
the same function as it is, which is how it is tested.
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

from workers.config.extensions import Augmentation, Labels
from workers.config.specs import MemberSpec, StudentSpec, TrainSpec
from workers.errors import ConclaveError, UserInputError
from workers.training.memory import is_out_of_memory
from workers.training.objective import NO_OTHERS

CAPTURING_DEVICES = ("cuda",)
WARM_UPS = 3  # steps before the capture, in which libraries choose their kernels and optimizers make their state
FUSED = (torch.optim.SGD, torch.optim.AdamW)
Captured = TypeVar("Captured")
Step = Callable[[Tensor, Labels, Tensor | None], tuple[Tensor, Tensor]]


class NotCapturedError(ConclaveError):
    """A GPU can't capture something. A step leaves the network and the optimizer as they were before."""


def why_not_captured(recipe: MemberSpec, spec: TrainSpec, optimizer: torch.optim.Optimizer, passes: int) -> str | None:
    """Return why the steps of a training can't be a graph, in words; None where they can.

    Args:
        recipe: The recipe.
        spec: What all trainings share.
        optimizer: The optimizer.
        passes: Number of backward passes of a step.
    """
    reasons = {
        "a step has several micro-batches": passes > 1,
        "gradients are clipped": spec.clip is not None,
        "a student asks its teacher": isinstance(recipe, StudentSpec),
        "the network is compiled": spec.compile is not None,
        "the optimizer is the team's own": not (isinstance(optimizer, FUSED) and optimizer.defaults.get("fused")),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def mixes(augmentations: Sequence[Augmentation]) -> bool:
    """Return whether any of the augmentations mixes images."""
    return any(type(one).mix is not Augmentation.mix for one in augmentations)


@dataclass
class CapturedStep:
    """A step over tensors that stay where they are.

    Attributes:
        step: Takes a step from images (N, 3, H, W), labels and weights; returns the mean loss and the number of right answers.
            Whoever has it holds this too. So it is held weakly: else both, and the graph's memory, would stay for long.
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
        """Take a step at a learning rate. What it returns is overwritten by the next one."""
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
        """Take a step from the inputs that are there. This is what a graph holds."""
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
        """Capture the step. The network and the optimizer are afterwards as they were before, also where that fails."""
        try:
            graph = torch.cuda.CUDAGraph()
            self._outputs = capture(graph, self._compute, self._warming_up())
        except BaseException:
            self.optimizer.zero_grad(set_to_none=True)  # some may be in the graph's memory, which nothing has written
            raise
        finally:
            self._let_capture(False)
        self.graph = graph

    @contextmanager
    def _warming_up(self) -> Iterator[None]:
        """Surround the steps before the capture. Raises NotCapturedError where they draw on the host: a graph would not."""
        before, there = _host_draws(), dict(_named(self.network))
        with unchanged(self.network, self.optimizer):
            yield
            if _host_draws() != before:
                raise NotCapturedError("the network draws random numbers on the host")
            if any(tensor is not there.get(name) for name, tensor in _named(self.network)):
                raise NotCapturedError("the network replaces its buffers, in the place of writing into them")
        self._let_capture(True)

    def _let_capture(self, capturable: bool) -> None:
        """Tell the optimizer that what follows is a capture. Of other steps it would warn then."""
        for settings in (*self.optimizer.param_groups, self.optimizer.defaults):
            if "capturable" in settings:
                settings["capturable"] = capturable


def _others(labels: Labels) -> Tensor:
    """Return the places of the images that were mixed in. Raises UserInputError where an augmentation does not say them."""
    if labels.other is not None:
        return labels.other
    if labels.share != 1:
        raise UserInputError(NO_OTHERS)
    return torch.arange(len(labels.first), device=labels.first.device)


def _host_draws() -> tuple[Any, ...]:
    """Return where the random number generators are that work on the host."""
    _, key, *place = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), np.asarray(key).tolist(), place


def capture(graph: torch.cuda.CUDAGraph, compute: Callable[[], Captured], around: AbstractContextManager[None]) -> Captured:
    """Capture what a function computes, after it has run a few times within `around`. Return the tensors that replays write.

    Raises:
        NotCapturedError: If that can't be captured, as where a network of a user's own looks at a number on its way.
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
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):  # which is left, whatever happens
            return compute()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise NotCapturedError(_first_cause(error)) from error


def _first_cause(error: BaseException) -> str:
    """Return the first line of what went wrong first: the end of a capture that failed raises an error of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]


@contextmanager
def unchanged(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put back, at the end, the tensors of a network and its optimizer, in place, and torch's random number generators.

    State of the optimizer that came in between is zero then. Zero is what the fused optimizers start from: their first step comes
    to the same.
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
    """Yield each tensor of an optimizer's state, with its parameter and its name."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                yield parameter, name, value
