"""Resolve `arch:` of a team file to a source of networks, without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.config.extensions import ARCHITECTURES

if TYPE_CHECKING:
    from workers.models.source import ArchitectureSource


def split_arch(arch: str) -> tuple[ArchitectureSource, str]:
    """Return the source of a network, and the network's name there. Raises ValueError for an unknown source."""
    source, _, name = arch.rpartition("/")
    if ":" in arch:
        return ARCHITECTURES["own"](), arch
    return ARCHITECTURES[source or "torchvision"](), name


def check_arch(arch: str) -> str:
    """Return `arch` if it is NAME, SOURCE/NAME or package.module:callable. Raises ValueError otherwise."""
    if arch in ARCHITECTURES and arch not in ("torchvision", "own"):
        raise ValueError(f"{arch} is a source of networks; say which of them, as {arch}/NAME")
    source, name = split_arch(arch)
    source.check(name)
    return arch


def describe_arch() -> str:
    """Return a sentence on the valid values of `arch:`."""
    sources = [name for name in ARCHITECTURES.names() if name not in ("torchvision", "own")]
    others = f", a network of {' or '.join(sources)} as SOURCE/NAME," if sources else ""
    return f"A classifier of torchvision{others} or a custom network as package.module:callable."
