"""Train several equal networks at once in one process: their parameters are stacked and called through torch's vmap.

Each lane of a pack has its own seed, order of rows and augmentation, as if it were trained alone. Its result is the same up to
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

from workers.config.job import derive_seed
from workers.models.network import Network
from workers.training.optimization import take_optimizer_step
from workers.training.steps import Stepper
from workers.training.task import TrainingTask

MULTIPLIERS = (nn.Conv2d, nn.Linear)


class Pack(Network):
    """L networks of one architecture as one module: (L, N, 3, H, W) -> (L, N, classes).

    Its tensors are those of the networks, stacked along a new first axis.

    Args:
        networks: The networks, of the same architecture.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        nn.Module.__init__(self)  # a pack has neither a trunk nor a head
        parameters, buffers = stack_module_state(list(networks))
        self.lanes = len(networks)
        self.names = {_key(name): name for name in (*parameters, *buffers)}
        for name, value in parameters.items():
            self.register_parameter(_key(name), nn.Parameter(value.detach()))
        for name, value in buffers.items():
            self.register_buffer(_key(name), value)
        # In lists, so that these networks are no submodules of the pack.
        self.template = [copy.deepcopy(networks[0])]
        self.stateless = [_mix_precision(copy.deepcopy(networks[0]).to("meta"))]  # computes with the tensors it is called with
        multipliers = (f"{place}." for place, module in networks[0].named_modules() if isinstance(module, MULTIPLIERS))
        self.multiplier_prefixes = tuple(multipliers)

    def train(self, mode: bool = True) -> Pack:
        """Set training or evaluation mode."""
        self.stateless[0].train(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of all lanes. Autocast does not reach into vmap, so its casts are done here by hand."""
        stacked = {name: value for values in (self.named_parameters(), self.named_buffers()) for name, value in values}
        tensors = {self.names[key]: value for key, value in stacked.items()}
        if torch.is_autocast_enabled(x.device.type):
            low = torch.get_autocast_dtype(x.device.type)
            tensors = {k: v.to(low) if k.startswith(self.multiplier_prefixes) else v for k, v in tensors.items()}

        def call(tensors: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(self.stateless[0], tensors, (x,))

        with torch.autocast(x.device.type, enabled=False):
            return cast(Tensor, vmap(call, randomness="different")(tensors, x))

    def network(self, lane: int) -> Network:
        """Return a copy of the network of one lane."""
        network = copy.deepcopy(self.template[0]).to(next(self.parameters()).device)
        tensors = {self.names[key]: value[lane] for key, value in self.state_dict().items()}
        network.load_state_dict({name: tensors[name] for name in network.state_dict()})
        return network


def _mix_precision(network: Network) -> Network:
    """Make a network multiply in the precision of its weights, and take batch statistics in that of its norms."""
    for module in network.modules():
        if isinstance(module, (*MULTIPLIERS, _BatchNorm)):
            module.forward = _cast_around(module, module.forward)  # type: ignore[method-assign, assignment]
    return network


def _cast_around(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        result = forward(x.to(next(module.parameters(), x).dtype))
        return result if isinstance(module, MULTIPLIERS) else result.to(x.dtype)

    return call


def _key(name: str) -> str:
    """Return the name of a stacked tensor: a module's tensors have no dots in their names."""
    return name.replace(".", "/")


class PackStepper(Stepper):
    """Takes the steps of a whole pack. Each of its networks is a lane."""

    def __init__(self, pack: Pack, task: TrainingTask, micro_batch: int) -> None:
        self.seeds = task.recipe.packed
        self.lanes = len(self.seeds)
        super().__init__(pack, task, micro_batch)

    def evaluated_networks(self) -> list[Network]:
        """Return the network of each lane."""
        return [cast(Pack, self.network).network(lane) for lane in range(self.lanes)]

    def order(self, epoch: int) -> Tensor:
        """Return the rows of an epoch's steps for each lane: (L, n)."""
        return torch.stack([self._shuffled(epoch, seed) for seed in self.seeds])

    @property
    def why_not_captured(self) -> str | None:
        """Why the steps can't be a CUDA graph."""
        return "several networks are trained at once"

    def _memory_format(self, network: Network) -> torch.memory_format:
        return torch.contiguous_format  # stacked kernels have five axes, and channels_last is for four

    def _step(self, epoch: int, step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take one optimizer step of every lane on its `rows` (L, n). Return mean losses and numbers of right answers, (L,)."""
        self._seed_network(derive_seed(self.seeds[0], epoch, step, "dropout"))
        batches = [self._augmented(epoch, step, own_rows, seed) for own_rows, seed in zip(rows, self.seeds, strict=True)]
        x, targets = torch.stack([x for x, _ in batches]).contiguous(), [targets for _, targets in batches]
        loss, correct = torch.zeros(self.lanes, device=self.device), torch.zeros(self.lanes, device=self.device)
        for part in self.group.micro_batches(rows.shape[1], self.micro_batch):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = self.model(x[:, part])
            share = logits.shape[1] / rows.shape[1]
            lanes = zip(logits, targets, map(self._weights, rows), strict=True)
            losses = [self.objective(z.float(), labels, part, None, weights) * share for z, labels, weights in lanes]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]  # no lane's gradient depends on another's loss
            loss += torch.stack(losses).detach()
            first = torch.stack([labels.first[part] for labels in targets])
            correct += (logits.argmax(2) == first).sum(1)
        take_optimizer_step(self.optimizer)
        return loss, correct
