"""Tell that a device has too little memory, and give back what is no longer used."""

from __future__ import annotations

import gc
import re

import torch

SIGN = re.compile(r"(CUDA|cuda|Cuda|CUBLAS|cuDNN|CUDNN|HIP).*(out of memory|ALLOC_FAILED|ALLOCATION_FAILED)")  # in other words


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came after, says that a device has too little memory."""
    seen: set[int] = set()  # an error may be its own cause
    while error is not None and id(error) not in seen:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and SIGN.search(str(error)):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def give_back(device: torch.device) -> None:
    """Give memory of a GPU back that nothing uses any more, so that another process can have it. Elsewhere do nothing."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
