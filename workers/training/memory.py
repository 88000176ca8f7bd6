"""Tell that a device has too little memory, and give back what is no longer used."""

from __future__ import annotations

import gc

import torch

SIGNS = ("out of memory", "ALLOC_FAILED")  # of CUDA itself, and of cuBLAS and cuDNN


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came after, says that a device has too little memory."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


def give_back(device: torch.device) -> None:
    """Give memory of a GPU back that nothing uses any more, so that another process can have it. Elsewhere do nothing."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
