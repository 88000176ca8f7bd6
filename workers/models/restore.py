"""Restore the network of a finished training, with its classes in the order of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from workers.config.specs import MemberSpec
from workers.errors import ConclaveError
from workers.models.build import build
from workers.models.network import Network
from workers.storage.artifacts import MemberArtifact, class_order


def restore(artifact: MemberArtifact, classes: Sequence[str], image_size: int, spec: MemberSpec | None = None) -> Network:
    """Return the trained network of an artifact, in evaluation mode, on the CPU.

    Args:
        artifact: A finished training.
        classes: Class names in the wanted order.
        image_size: Side of the images in pixels.
        spec: The member; the one in the artifact's manifest if None.

    Raises:
        CorruptFileError: If a file of the artifact is damaged.
        ConclaveError: If the classes differ, or cannot be reordered.
    """
    record = artifact.manifest()
    spec = spec or record.member
    network = build(spec.model_copy(update={"weights": None}), len(classes), image_size)
    network.load_state_dict(artifact.weights())
    order = class_order(record.classes, classes, spec.name)
    if order != sorted(order):
        _reorder_head(network, order, spec.name)
    return network.eval()


def _reorder_head(network: Network, order: list[int], name: str) -> None:
    """Permute the head's outputs into the wanted class order."""
    if not isinstance(network.head, nn.Linear):
        raise ConclaveError(f"member {name} knows the classes in another order, and has no Linear head to reorder.")
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.copy_(parameter[order])
