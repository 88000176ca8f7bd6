"""Compile a network by torch.compile where the team asks for it: fused kernels, and CUDA graphs by `max-autotune` on a GPU."""

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
    """Return a compiled form of `model` that shares its parameters.

    It is compiled at its first call, which takes a minute or so; later ones find it in torch's cache.

    Args:
        model: The network.
        mode: `default`, or `max-autotune`, which picks kernels by timing them and is for GPUs. On a CPU both are the same, so
            that weights repeat.
        device: The device that it runs on.
        has_several_passes: Whether a step has several backward passes. A CUDA graph would overwrite their gradients, so there
            is none then.

    Raises:
        ConclaveError: If there is no C++ compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS) if name):
        raise ConclaveError(
            "train.compile needs a C++ compiler (g++ or clang++) on the machine that trains: install one, or leave it out"
        )
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it says that there is no CUDA here
    options: dict[str, Any] = {}
    if device.type == "cuda" and mode == "max-autotune":
        options = {"mode": "max-autotune-no-cudagraphs" if has_several_passes else mode}
    if device.type == "cpu":
        import torch._inductor.config as inductor

        inductor.compile_threads = 1  # no pool of processes beside a trainer that has one core
    return cast(nn.Module, torch.compile(model, dynamic=False, **options))
