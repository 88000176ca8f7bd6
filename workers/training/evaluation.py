"""Compute a trained network's outputs, and choose the precision that a device computes in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from workers.data.store import Rows
from workers.diagnostics.callback import Epoch
from workers.models.network import Network
from workers.training.augmentation import to_float

EVAL_BATCH = 512
LARGEST_LOSS = 1e9  # in the place of one that is not finite, which JSON has no number for


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "float32" or "bfloat16" for the setting `precision`; "auto" takes bfloat16 where the device has units for it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"  # a T4 would emulate it
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_units() else "float32"


def _has_bf16_units() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@torch.inference_mode()
def predict_outputs(network: Network, images: Tensor, rows: Tensor | Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the logits (n, C) and features (n, D) of `rows`, float32 on the CPU, in evaluation mode.

    TF32, by which GPUs convolve unless told otherwise, is off: its ten bits differ a hundred times more from the exported
    model than float32 does, and that difference is checked.

    Args:
        network: The network, on `device`.
        images: (N, H, W, 3) uint8.
        rows: (n,) row numbers.
        device: The device to compute on.
    """
    network.eval()
    index = torch.as_tensor(np.asarray(rows))
    logits, features = [], []
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for start in range(0, len(index), EVAL_BATCH):
            batch = network.features(to_float(images[index[start : start + EVAL_BATCH]].to(device)))
            logits.append(network.head(batch).float().cpu())
            features.append(batch.float().cpu())
    return torch.cat(logits), torch.cat(features)


@dataclass(frozen=True)
class Validation:
    """Measures networks between two epochs.

    Attributes:
        images: (N, H, W, 3) uint8, the images of the whole data set.
        labels: (N,) int64.
        rows: Row numbers to measure on, by the name that the metrics get.
        device: The device to compute on.
        precision: "float32" or "bfloat16".
    """

    images: Tensor
    labels: Tensor
    rows: Mapping[str, Tensor]
    device: torch.device
    precision: str

    def __call__(self, network: Network) -> Epoch:
        """Return NAME/loss and NAME/accuracy of a network."""
        metrics: Epoch = {}
        for name, rows in self.rows.items():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits, _ = predict_outputs(network, self.images, rows, self.device)
            labels = self.labels[rows].cpu()
            loss = F.cross_entropy(logits, labels).item()
            metrics[f"{name}/loss"] = loss if math.isfinite(loss) else LARGEST_LOSS
            metrics[f"{name}/accuracy"] = (logits.argmax(1) == labels).float().mean().item()
        return metrics
