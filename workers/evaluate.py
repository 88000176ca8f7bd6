"""A network's outputs on rows, and the precision that a device computes in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.augment import to_float
from workers.data import Rows
from workers.models import Network

EVAL_BATCH = 512


def resolve_precision(asked: str, device: torch.device) -> str:
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"  # a T4 would emulate it
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_units() else "float32"


def _has_bf16_units() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@torch.inference_mode()
def outputs(network: Network, images: Tensor, rows: Tensor | Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) and features (n, D) of `rows`, float32 on the CPU, in evaluation mode.

    Without TF32, by which GPUs convolve unless told otherwise: its ten bits are a hundred times further from what the exported
    model says than 32 are, and that is checked.
    """
    network.eval()
    index = torch.as_tensor(np.asarray(rows))
    logits, features = [], []
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for at in range(0, len(index), EVAL_BATCH):
            found = network.features(to_float(images[index[at : at + EVAL_BATCH]].to(device)))
            logits.append(network.head(found).float().cpu())
            features.append(found.float().cpu())
    return torch.cat(logits), torch.cat(features)
