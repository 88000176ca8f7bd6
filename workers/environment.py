"""What a machine computes with, and where another's differs: mixed machines give other weights without a word."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from workers.faults import reach

PACKAGES = ("fusion", "orchestrator", "workers")
OF_THE_DEVICE = ("cuda", "driver", "device")
MISSING = "missing"
Environment = Mapping[str, str]


@lru_cache
def environment() -> Environment:
    """Python, the packages that ours asks for, our own code, and the GPU with its driver where there is one."""
    import torch

    found = {"python": platform.python_version(), "code": _code(), **{needed.name: there for needed, there in required()}}
    found["torch"] = torch.__version__
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "driver": _driver(), "device": torch.cuda.get_device_name(0)}
    if reach("environment.probe") == "other":
        found["torch"] = "0.0.0"
    return found


def differences(head: Environment, here: Environment) -> list[str]:
    """In words, what is not the same; of GPUs only where both have one, since a head needs none."""
    asked = [name for name in sorted({*head, *here}) if name not in OF_THE_DEVICE or (name in head and name in here)]
    return [
        f"{name} is {here.get(name, MISSING)}, and {head.get(name, MISSING)} at the head"
        for name in asked
        if head.get(name) != here.get(name)
    ]


def required() -> Iterator[tuple[Requirement, str]]:
    """What our distribution asks for, and the version that is there, or "missing"."""
    for line in requires("conclave-ensembles") or ():
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate():
            try:
                yield needed, version(needed.name)
            except PackageNotFoundError:
                yield needed, MISSING


def _code() -> str:
    """Of the three packages, file by file."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _driver() -> str:
    """As the kernel module says it, where there is one."""
    path = Path("/sys/module/nvidia/version")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "unknown"
