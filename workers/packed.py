"""Several equal networks trained at once in one process: parameters stacked, called through torch's vmap.

Each lane of a pack has its seed, its order of rows and its augmentation, as if it were trained alone, and the same result up to
rounding (1e-5; dropout draws differ). Small networks leave most of a GPU idle; stacked, one kernel does the work of all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from workers.job import derive_seed
from workers.models import Network
from workers.trainer import Trainer

MULTIPLIERS = (nn.Conv2d, nn.Linear)


class Pack(Network):
    """L networks of one architecture: (L, N, 3, H, W) -> (L, N, classes). Its tensors are theirs, stacked by a first axis."""

    def __init__(self, networks: Sequence[Network]) -> None:
        nn.Module.__init__(self)  # neither trunk nor head of its own
        parameters, buffers = stack_module_state(list(networks))
        self.lanes = len(networks)
        self.names = {_key(name): name for name in (*parameters, *buffers)}
        for name, value in parameters.items():
            self.register_parameter(_key(name), nn.Parameter(value.detach()))
        for name, value in buffers.items():
            self.register_buffer(_key(name), value)
        self.template = [copy.deepcopy(networks[0])]  # in a list, so that it is no part of this one
        self.one = [_mixing(copy.deepcopy(networks[0]).to("meta"))]  # how one is computed, by tensors that it is given
        multiplied = (f"{at}." for at, module in networks[0].named_modules() if isinstance(module, MULTIPLIERS))
        self.multiplied = tuple(multiplied)  # the beginnings of their tensors' names

    def train(self, mode: bool = True) -> Pack:
        self.one[0].train(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Autocast does not reach into vmap: what it would do is done here, by hand."""
        own = {name: value for values in (self.named_parameters(), self.named_buffers()) for name, value in values}
        tensors = {self.names[key]: value for key, value in own.items()}
        if torch.is_autocast_enabled(x.device.type):
            low = torch.get_autocast_dtype(x.device.type)
            tensors = {name: value.to(low) if name.startswith(self.multiplied) else value for name, value in tensors.items()}

        def call(tensors: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(self.one[0], tensors, (x,))

        with torch.autocast(x.device.type, enabled=False):
            return cast(Tensor, vmap(call, randomness="different")(tensors, x))

    def network(self, lane: int) -> Network:
        """One of them, a copy."""
        found = copy.deepcopy(self.template[0]).to(next(self.parameters()).device)
        own = {self.names[key]: value[lane] for key, value in self.state_dict().items()}
        found.load_state_dict({name: own[name] for name in found.state_dict()})
        return found


def _mixing(network: Network) -> Network:
    """Multiplies in the precision of its weights, and takes batch statistics in that of theirs."""
    for module in network.modules():
        if isinstance(module, (*MULTIPLIERS, _BatchNorm)):
            module.forward = _taking(module, module.forward)  # type: ignore[method-assign, assignment]
    return network


def _taking(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def called(x: Tensor) -> Tensor:
        own = next(module.parameters(), x).dtype
        found = forward(x.to(own))
        return found if isinstance(module, MULTIPLIERS) else found.to(x.dtype)

    return called


def _key(name: str) -> str:
    """A module's tensors have no dots in their names."""
    return name.replace(".", "/")


class PackTrainer(Trainer):
    """Trains a whole pack; what it gives is the one that has the fit's own seed."""

    def __post_init__(self) -> None:
        self.seeds = self.member.packed
        self.lanes, self.lane = len(self.seeds), self.seeds.index(self.seed)
        super().__post_init__()

    @property
    def pack(self) -> Pack:
        return cast(Pack, self.network)

    def _memory_format(self) -> torch.memory_format:
        return torch.contiguous_format  # stacked kernels have five axes, and channels_last is for four

    def _watched(self) -> list[Network]:
        return [self.pack.network(lane) for lane in range(self.lanes)]

    def _order(self, epoch: int) -> Tensor:
        """(L, n)"""
        return torch.stack([self._shuffled(epoch, seed) for seed in self.seeds])

    def _step(self, epoch: int, step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step of every lane on its `rows` (L, n). Gives each one's mean loss and count of right answers, (L,)."""
        torch.manual_seed(derive_seed(self.seeds[0], epoch, step, "dropout"))
        each = [self._augmented(epoch, step, own, seed) for own, seed in zip(rows, self.seeds, strict=True)]
        x, targets = torch.stack([x for x, _ in each]).contiguous(), [targets for _, targets in each]
        loss, correct = torch.zeros(self.lanes, device=self.device), torch.zeros(self.lanes, device=self.device)
        for part in self.group.parts(rows.shape[1], self.micro):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = self.model(x[:, part])
            share = logits.shape[1] / rows.shape[1]
            losses = [self._mixed_loss(own.float(), of, part) * share for own, of in zip(logits, targets, strict=True)]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]  # no lane's gradient depends on another's loss
            loss += torch.stack(losses).detach()
            first = torch.stack([of[0][part] for of in targets])
            correct += (logits.argmax(2) == first).sum(1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, correct
