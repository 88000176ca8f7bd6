"""Compute a trained network's outputs, and choose a device's precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
TF32_TOLERANCE = 5e-5  # largest difference between two probabilities
LARGEST_LOSS = 1e9  # replaces a non-finite loss, which JSON cannot hold


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve `precision` to "float32" or "bfloat16"; "auto" picks bfloat16 if the device has hardware for it."""
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

    Convolutions on a GPU are six times as fast in TF32, but its 10-bit mantissa may deviate too much from the exported model.
    TF32 is used only if the first batch stays within tolerance.

    Args:
        network: The network, on `device`.
        images: (N, H, W, 3) uint8.
        rows: (n,) row numbers.
        device: The device to compute on.
    """
    network.eval()
    index = torch.as_tensor(np.asarray(rows)).to(images.device)
    batches = [index[start : start + EVAL_BATCH] for start in range(0, len(index), EVAL_BATCH)] or [index]
    logits, features = [], []
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        first = to_float(images[batches[0]].to(device))
        is_float32 = device.type == "cuda" and not torch.is_autocast_enabled("cuda")
        allow_tf32 = is_float32 and tf32_is_precise(lambda: network(first).float())
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=allow_tf32):
        for rows_of_batch in batches:
            batch = network.features(to_float(images[rows_of_batch].to(device)))
            logits.append(network.head(batch).float())
            features.append(batch.float())
        return torch.cat(logits).cpu(), torch.cat(features).cpu()


def tf32_is_precise(compute: Callable[[], Tensor]) -> bool:
    """Return whether TF32 and float32 give the same probabilities, within half of an export's tolerance.

    Args:
        compute: Computes logits (n, C) under the current flags of `torch.backends.cudnn`.
    """
    found = []
    for allowed in (False, True):
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=allowed):
            found.append(compute().softmax(1))
    return bool((found[0] - found[1]).abs().max() <= TF32_TOLERANCE) if found[0].numel() else True


@dataclass(frozen=True)
class Validation:
    """Measures a network's loss and accuracy between two epochs.

    Attributes:
        images: (N, H, W, 3) uint8, the images of the whole data set.
        labels: (N,) int64.
        rows: Row numbers to measure on, by the prefix of their metrics.
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
