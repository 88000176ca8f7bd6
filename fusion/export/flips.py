"""Predict with flips: average each network's features over an image and its mirror image."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from fusion.export.fused_model import features_of
from fusion.predictions import Floats, Inputs, Predictions
from fusion.selection.networks import CandidateNetworks
from workers.models.network import Network
from workers.training.augmentation import to_float

BATCH = 64


def predict_with_flips(predictions: Predictions, networks: CandidateNetworks[Network], images: Tensor) -> Predictions:
    """Return a team's predictions with features averaged over each image and its mirror image.

    Args:
        predictions: The predictions without flips.
        networks: The networks; predictions of missing networks are left out.
        images: (n, S, S, 3) uint8, the images of the predictions.
    """
    full = [_outputs(network, images) for network in networks.full]
    folds = None
    if any(networks.bags):
        folds = np.full_like(cast(Floats, predictions.folds), np.nan)
        for member, bag in enumerate(networks.bags):
            for fold, network in enumerate(bag):
                folds[member, fold] = _outputs(network, images)[1]
    student = None if networks.student is None else _outputs(networks.student, images)[1]
    features = tuple(f for f, _ in full) if predictions.features else ()
    return Predictions(np.stack([logits for _, logits in full]), features, predictions.labels, folds, student)


@torch.inference_mode()
def _outputs(network: Network, images: Tensor) -> tuple[Inputs, Floats]:
    """Return a network's features (n, D) and logits (n, C)."""
    features = torch.cat([features_of(network, to_float(batch), True) for batch in torch.split(images, BATCH)])
    return features.numpy(), network.head(features).double().numpy()
