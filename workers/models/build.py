"""Build a member's network: a torchvision classifier by name, a ResNet of any width, or a custom network."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from workers.config.architectures import split_arch
from workers.config.specs import MemberSpec
from workers.models.network import Network
from workers.models.small_conv import use_small_conv
from workers.models.weights import Names, load_weights


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
    built = source.build(spec, name, classes, image_size)
    network, names = _divided(built, classes, has_parts=source.module(name) is not None)
    if statistics := source.statistics(name):
        for buffer, values in zip((network.mean, network.std), statistics, strict=True):
            buffer.copy_(torch.tensor(values).view(1, 3, 1, 1))
    if spec.weights:
        load_weights(network, names, spec)
    return network


def _divided(network: nn.Module, classes: int, has_parts: bool) -> tuple[Network, Names]:
    """Divide a network into its trunk and its head.

    Args:
        network: The network that the source built.
        classes: Number of classes.
        has_parts: Whether a method `features` and a module `head` of it are what we mean by them.
    """
    if isinstance(network, Network):
        return network, Names("", None)
    head = getattr(network, "head", None)
    if has_parts and callable(getattr(network, "features", None)) and isinstance(head, nn.Module):
        return Network(_Features(network), head), Names("trunk.network.", "head")
    return _split(network, classes)


class _Features(nn.Module):
    """A custom network with `features` and `head`, stripped of its head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        del network.head
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self.network).features(x))


def _split(network: nn.Module, classes: int) -> tuple[Network, Names]:
    """Split a network before its last Linear layer. If it does not end in one, its logits are the features."""
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears or cast(nn.Linear, network.get_submodule(linears[-1])).out_features != classes:
        return Network(network, nn.Identity()), Names("trunk.", None)
    head = network.get_submodule(linears[-1])
    parent, _, name = linears[-1].rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return Network(network, head), Names("trunk.", linears[-1])
