"""The last stages of ResNets: found in the networks, what they read and what they make of it, and put back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fusion.outputs import Floats, Gathered, Inputs, Labels, Table
from workers.augment import to_float
from workers.models import Network

EVALUATED = 1024  # rows at a time


class Tail(nn.Module):
    """A ResNet's last stage: (n, c, h, w) -> (n, D) features."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.stage(x)).mean((2, 3))


def tail(network: Network) -> Tail | None:
    """The last stage of a ResNet; None of any other network."""
    stage = getattr(network.trunk, "layer4", None)
    return Tail(stage) if isinstance(stage, nn.Module) and isinstance(network.head, nn.Linear) else None


def moved(network: Network, stage: nn.Module) -> Network:
    """A copy of the network with another last stage."""
    found = copy.deepcopy(network)
    found.trunk.layer4 = copy.deepcopy(cast(Tail, stage).stage)
    return found


def with_stages(gathered: Gathered, networks: Sequence[Network], images: Any) -> Gathered:
    """The same with the members' last stages and what these read; as it was where one is no ResNet. `images` (N, H, W, 3) uint8
    of all rows."""
    stages = tuple(tail(network) for network in networks)
    if None in stages:
        return gathered

    def table(one: Table, rows: Labels) -> Table:
        parts = [to_float(torch.from_numpy(images[rows[at : at + EVALUATED]])) for at in range(0, len(rows), EVALUATED)]
        found = (torch.cat([stage_inputs(network, x) for x in parts]).numpy() for network in networks)
        return replace(one, stages=tuple(found))

    evidence = replace(gathered.evidence, fuse=table(gathered.evidence.fuse, gathered.fuse_rows), stages=stages)
    return replace(gathered, evidence=evidence, test=table(gathered.test, gathered.test_rows))


@torch.no_grad()
def stage_inputs(network: Network, images: Tensor) -> Tensor:
    """What the last stage reads: (n, 3, H, W) in [0, 1] -> (n, c, h, w)."""
    seen: list[Tensor] = []
    stage = cast(nn.Module, network.trunk.layer4)
    handle = stage.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network.eval().features(images)
    finally:
        handle.remove()
    return seen[0]


@torch.no_grad()
def features(stages: Sequence[nn.Module], inputs: Sequence[Inputs]) -> Floats:
    """(n, sum of D_m): what the last stages make of their inputs, M x (n, c, h, w)."""
    found = []
    for stage, x in zip(stages, inputs, strict=True):
        parts = [stage(torch.from_numpy(x[at : at + EVALUATED]).float()) for at in range(0, len(x), EVALUATED)]
        found.append(torch.cat(parts).double().numpy())
    return np.concatenate(found, axis=1)
