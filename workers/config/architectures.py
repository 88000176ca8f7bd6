"""Find the source of a network by what a team file says under `arch:`, without importing torch."""

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
    """Return what names a network: NAME, SOURCE/NAME, or package.module:callable. Raises ValueError for anything else."""
    if arch in ARCHITECTURES and arch not in ("torchvision", "own"):
        raise ValueError(f"{arch} is a source of networks; say which of them, as {arch}/NAME")
    source, name = split_arch(arch)
    source.check(name)
    return arch


def describe_arch() -> str:
    """Return what may stand under `arch:`, in a sentence."""
    sources = [name for name in ARCHITECTURES.names() if name not in ("torchvision", "own")]
    others = f", a network of {' or '.join(sources)} as SOURCE/NAME," if sources else ""
    return f"A classifier of torchvision{others} or a network of your own as package.module:callable."
