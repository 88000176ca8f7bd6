"""A finished fit as a network again, its classes in the order of the data."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import nn

from workers.artifact import MemberArtifact, class_order
from workers.errors import ConclaveError
from workers.models import Network, build
from workers.spec import MemberSpec


def restore(artifact: MemberArtifact, classes: Sequence[str], image_size: int, spec: MemberSpec | None = None) -> Network:
    """In evaluation mode, on the CPU; `spec` is the one that it was trained by where left out. Raises Corrupt, ConclaveError."""
    record = artifact.manifest()
    spec = spec or MemberSpec.model_validate_json(json.dumps(record["member"]))
    network = build(spec.model_copy(update={"weights": None}), len(classes), image_size)
    network.load_state_dict(artifact.weights())
    order = class_order(record["classes"], classes, spec.name)
    if order != sorted(order):
        _reorder(network, order, spec.name)
    return network.eval()


def _reorder(network: Network, order: list[int], name: str) -> None:
    """Make a head that counts the classes in another order count them in ours."""
    if not isinstance(network.head, nn.Linear):
        raise ConclaveError(f"member {name} knows the classes in another order, and has no Linear head to put them in ours.")
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.copy_(parameter[order])
