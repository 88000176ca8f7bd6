"""Compile a network with torch.compile: fused kernels, and CUDA graphs with `max-autotune` on a GPU."""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any, cast

import torch
from torch import nn

from workers.errors import ConclaveError

COMPILERS = ("g++", "c++", "clang++")


def compile_network(model: nn.Module, mode: str, device: torch.device, has_several_passes: bool = False) -> nn.Module:
    """Return a compiled version of `model` that shares its parameters.

    The first call compiles it, which takes about a minute; later compilations hit torch's cache.

    Args:
        model: The network.
        mode: `default`, or `max-autotune`, which picks kernels by timing them on a GPU. On a CPU both are the same, so that
            weights are reproducible.
        device: The device to run on.
        has_several_passes: Whether a step has several backward passes. If so, no CUDA graph is used: it would overwrite their
            gradients.

    Raises:
        ConclaveError: If there is no C++ compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS) if name):
        raise ConclaveError(
            "train.compile needs a C++ compiler (g++ or clang++) on the machine that trains: install one, or leave it out"
        )
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns if CUDA is missing
    options: dict[str, Any] = {}
    if device.type == "cuda" and mode == "max-autotune":
        options = {"mode": "max-autotune-no-cudagraphs" if has_several_passes else mode}
    if device.type == "cpu":
        import torch._inductor.config as inductor

        inductor.compile_threads = 1  # no process pool: a trainer may have a single core
    return cast(nn.Module, torch.compile(model, dynamic=False, **options))
