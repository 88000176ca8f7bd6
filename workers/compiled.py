"""A network through torch.compile, where the team asks for it: fused kernels; with `max-autotune` on a GPU CUDA graphs too."""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any, cast

import torch
from torch import nn

from workers.errors import ConclaveError

COMPILERS = ("g++", "c++", "clang++")


def compiled(model: nn.Module, how: str, device: torch.device, several: bool = False) -> nn.Module:
    """`model`, sharing its parameters, compiled at its first call (a minute or so; later ones find it in torch's cache).

    `how`: `default` or `max-autotune`, which picks kernels by timing and is for GPUs: on a CPU both are the same, so that
    weights repeat. `several`: a step has several backward passes, whose gradients a CUDA graph would overwrite: it does without.
    Raises ConclaveError where there is no C++ compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), *COMPILERS) if name):
        raise ConclaveError(
            "train.compile needs a C++ compiler (g++ or clang++) on the machine that trains: install one, or leave it out"
        )
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA here
    options: dict[str, Any] = {}
    if device.type == "cuda" and how == "max-autotune":
        options = {"mode": "max-autotune-no-cudagraphs" if several else how}
    if device.type == "cpu":
        import torch._inductor.config as inductor

        inductor.compile_threads = 1  # no pool of processes beside a trainer that has one core
    return cast(nn.Module, torch.compile(model, dynamic=False, **options))
