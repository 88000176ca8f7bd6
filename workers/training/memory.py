"""Detect out-of-memory errors, and release unused GPU memory."""

from __future__ import annotations

import gc
import re

import torch

OUT_OF_MEMORY_PATTERN = re.compile(
    r"(CUDA|cuda|Cuda|CUBLAS|cuDNN|CUDNN|HIP).*(out of memory|ALLOC_FAILED|ALLOCATION_FAILED)"
)  # other wordings


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or any error in its chain, is an out-of-memory error of a device."""
    seen: set[int] = set()  # an error may be its own cause
    while error is not None and id(error) not in seen:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and OUT_OF_MEMORY_PATTERN.search(str(error)):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def give_back(device: torch.device) -> None:
    """Release unused GPU memory for other processes. Does nothing on other devices."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
