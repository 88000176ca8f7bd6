"""Describe a machine's environment, and compare machines: mixed versions would silently change the weights."""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from workers.diagnostics.faults import fault_point

DISTRIBUTION = "conclave-ensembles"
PACKAGES = ("conclave", "fusion", "orchestrator", "workers")
DEVICE_FACTS = ("cuda", "driver", "device")
MISSING = "missing"
DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/dxg"))  # one exists if the machine has a GPU; the second is WSL's
Environment = Mapping[str, str]


@lru_cache
def environment() -> Environment:
    """Return the versions of Python, required packages and our own code, and any GPU with its driver."""
    facts = {"python": platform.python_version(), "code": _code_digest()}
    facts |= {requirement.name: installed for requirement, installed in requirements()}
    facts["torch"] = _torch_version()
    if "torch" in sys.modules or any(path.exists() for path in DRIVERS):
        import torch  # only now: it takes seconds

        if torch.cuda.is_available():
            facts |= {"cuda": str(torch.version.cuda), "driver": _driver_version(), "device": torch.cuda.get_device_name(0)}
    if fault_point("environment.probe") == "other":
        facts["torch"] = "0.0.0"
    return facts


def differences(head: Environment, machine: Environment) -> list[str]:
    """Return a sentence for each fact that differs. GPUs are compared only if both machines have one."""
    names = [n for n in sorted({*head, *machine}) if n not in DEVICE_FACTS or (n in head and n in machine)]
    return [
        f"{name} is {machine.get(name, MISSING)}, and {head.get(name, MISSING)} at the head"
        for name in names
        if head.get(name) != machine.get(name)
    ]


def requirements() -> Iterator[tuple[Requirement, str]]:
    """Yield each requirement of our distribution with its installed version, or with "missing"."""
    for line in requires(DISTRIBUTION) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            try:
                yield requirement, version(requirement.name)
            except PackageNotFoundError:
                yield requirement, MISSING


def _torch_version() -> str:
    """Return torch.__version__, including the build, from torch's version file: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return MISSING
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    line = re.search(r"^__version__ = ['\"](.+)['\"]", text, re.MULTILINE)
    return line.group(1) if line else version("torch")


def _code_digest() -> str:
    """Return the digest of our packages, file by file."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _driver_version() -> str:
    """Return the version of NVIDIA's kernel module."""
    path = Path("/sys/module/nvidia/version")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "unknown"
