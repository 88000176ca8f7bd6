"""Build a member's network: a torchvision classifier by name, a ResNet of any width, or a custom network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from workers.config.architectures import split_arch
from workers.config.specs import MemberSpec
from workers.errors import UserInputError
from workers.models.network import Network
from workers.models.small_conv import use_small_conv


def build(spec: MemberSpec, classes: int, image_size: int) -> Network:
    """Return a member's network, with fresh weights from its seed, or with the weights in `weights:`.

    Args:
        spec: The member.
        classes: Number of classes.
        image_size: Side of the images in pixels.

    Raises:
        UserInputError: If the network cannot be built as specified.
    """
    torch.manual_seed(spec.seed)
    network = _built(spec, classes, image_size)
    use_small_conv(network)
    return network


def _built(spec: MemberSpec, classes: int, image_size: int) -> Network:
    source, name = split_arch(spec.arch)
    network = source.build(spec, name, classes, image_size)
    if isinstance(network, Network):
        return network
    if spec.weights:
        _load(network, spec)
    head = getattr(network, "head", None)
    if source.module(name) and callable(getattr(network, "features", None)) and isinstance(head, nn.Module):
        return Network(_Features(network), head)
    return _split(network, classes)


class _Features(nn.Module):
    """A custom network with `features` and `head`, stripped of its head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        del network.head
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self.network).features(x))


def _split(network: nn.Module, classes: int) -> Network:
    """Split a network before its last Linear layer. If it does not end in one, its logits are the features."""
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears or cast(nn.Linear, network.get_submodule(linears[-1])).out_features != classes:
        return Network(network, nn.Identity())
    head = network.get_submodule(linears[-1])
    parent, _, name = linears[-1].rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return Network(network, head)


def _load(network: nn.Module, spec: MemberSpec) -> None:
    """Load a state dict, except a head for another number of classes. Never unpickles code."""
    path = cast(Path, spec.weights)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        problem = str(error).split("\n")[0]
        raise UserInputError(f"member {spec.name}: weights {path} can't be read as a plain state dict ({problem}).") from None
    state_of_network = network.state_dict()
    if not isinstance(state, dict):
        raise UserInputError(f"member {spec.name}: weights {path} hold no state dict.")
    matching = {k: v for k, v in state.items() if k in state_of_network and state_of_network[k].shape == v.shape}
    heads = {n for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    missing = [
        k
        for k in state_of_network
        if k not in matching and k.rpartition(".")[0] not in heads and not k.endswith("num_batches_tracked")
    ]
    if missing:
        raise UserInputError(f"member {spec.name}: weights {path} are of another network than {spec.arch} (at {missing[0]}).")
    network.load_state_dict(matching, strict=False)
