"""Is this machine fit for a sweep? Facts, and what is wrong in words."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

LEAST_DISK = 5 << 30


def examine() -> tuple[dict[str, str], list[str]]:
    """(facts by name, problems)."""
    problems: list[str] = []
    facts = {"Python": platform.python_version(), "Platform": platform.platform()}
    facts |= _torch(problems)
    for line in requires("conclave-ensembles") or []:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate():
            continue
        facts[needed.name] = _package(needed, problems)
    facts["CPU cores"] = str(os.cpu_count())
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
        problems.append("nvidia-smi is here but PyTorch sees no GPU: driver and PyTorch's CUDA don't match.")
    return facts


def _package(needed: Requirement, problems: list[str]) -> str:
    try:
        found = version(needed.name)
    except PackageNotFoundError:
        problems.append(f"{needed.name} is not installed. Run `make install`.")
        return "missing"
    if not needed.specifier.contains(found, prereleases=True):
        problems.append(f"{needed.name} {found} is not {needed.specifier}. Run `make install`.")
    return found
