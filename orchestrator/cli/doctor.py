"""Check whether this machine can run a sweep."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from workers.diagnostics.cores import available_cores
from workers.runtime.environment import MISSING, requirements

LEAST_DISK = 5 << 30


def examine() -> tuple[dict[str, str], list[str]]:
    """Return the machine's facts by name, and a sentence for each problem."""
    problems: list[str] = []
    facts = {"Python": platform.python_version(), "Platform": platform.platform()}
    facts |= _torch(problems)
    for requirement, installed in requirements():
        facts[requirement.name] = installed
        if installed == MISSING:
            problems.append(f"{requirement.name} is not installed. Run `make install`.")
        elif not requirement.specifier.contains(installed, prereleases=True):
            problems.append(f"{requirement.name} {installed} is not {requirement.specifier}. Run `make install`.")
    facts["CPU cores"] = str(available_cores())
    free = shutil.disk_usage(Path.cwd()).free
    facts["Free disk"] = f"{free / 2**30:.0f} GiB"
    if free < LEAST_DISK:
        problems.append(f"only {free / 2**30:.1f} GiB of disk are free here; checkpoints of a team need more.")
    return facts, problems


def _torch(problems: list[str]) -> dict[str, str]:
    try:
        import torch
    except ImportError as error:
        problems.append(f"PyTorch can't be imported ({error}). Run `make install`.")
        return {}
    available = torch.cuda.is_available()
    facts = {"PyTorch version": torch.__version__, "GPU available": str(available)}
    if available:
        facts["Device name"] = torch.cuda.get_device_name(0)
    elif shutil.which("nvidia-smi"):
        problems.append("nvidia-smi is installed but PyTorch sees no GPU: the driver and PyTorch's CUDA don't match.")
    return facts
