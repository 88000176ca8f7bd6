"""Outputs of finished trainings on rows that came after them: an image that is added to *fuse* or *test* trains nothing again."""

from __future__ import annotations

import numpy as np
import torch

from workers.config.specs import MemberSpec
from workers.data.store import Rows, Store
from workers.models.restore import restore
from workers.storage.artifacts import MemberArtifact
from workers.training.evaluation import predict_outputs

Outputs = dict[str, torch.Tensor]


def outputs_on(artifact: MemberArtifact, store: Store, rows: Rows, spec: MemberSpec | None = None) -> Outputs:
    """Return an artifact's outputs, which cover some rows. Those that are missing are computed, and kept in the artifact.

    Args:
        artifact: A finished training.
        store: The packed data.
        rows: The rows of *fuse* and *test*.
        spec: The member; the one in the artifact's manifest if None.

    Returns:
        What `MemberArtifact.outputs` returns.

    Raises:
        CorruptFileError: If a file of the artifact is damaged.
    """
    outputs = artifact.outputs()
    later = artifact.later_outputs()
    found = _joined(outputs, later) if later else outputs
    missing = rows[~np.isin(store.keys[rows], found["keys"].numpy())]
    if not len(missing):
        return found
    record = artifact.manifest()
    network = restore(artifact, record.classes, store.size, spec)
    logits, features = predict_outputs(network, torch.from_numpy(store.images), missing, torch.device("cpu"))
    computed = {"keys": torch.from_numpy(store.keys[missing]), "logits": logits}
    if "features" in outputs:
        computed["features"] = features
    later = _joined(later, computed) if later else computed
    artifact.keep_later_outputs(later)
    return _joined(outputs, later)


def _joined(first: Outputs, then: Outputs) -> Outputs:
    """Return outputs with those of more rows after them."""
    return {name: torch.cat([tensor, then[name]]) if name in then else tensor for name, tensor in first.items()}
