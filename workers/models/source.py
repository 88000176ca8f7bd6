"""What a source of networks is: names, and networks by their names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from workers.config.specs import MemberSpec


class ArchitectureSource(ABC):
    """A source of networks: one module of `workers/models/architectures/` with one class, registered there.

    In a team file, `arch: SOURCE/NAME` names a network of a source. `arch: NAME` is torchvision's, and
    `arch: package.module:callable` the user's own.
    """

    @abstractmethod
    def check(self, name: str) -> None:
        """Raise ValueError where there is no such network. It is called without torch."""

    @abstractmethod
    def build(self, spec: MemberSpec, name: str, classes: int, image_size: int) -> nn.Module:
        """Return a network with fresh weights by torch's global generator, which is seeded by the member's seed.

        It turns normalized images (N, 3, H, W) float32 into logits (N, classes). A network that ends in a Linear layer, or has
        `features` and a `head`, gives `concat` its features.

        Args:
            spec: The member.
            name: The name behind SOURCE/, or the whole of `arch`.
            classes: Number of classes.
            image_size: Side of the images in pixels.

        Raises:
            UserInputError: If the network cannot be built as asked.
        """

    def is_sure(self, name: str) -> bool:
        """Return whether a network can be built and trained whatever the recipe and the images, and ends in a Linear layer.

        Nobody tries it before a sweep then. It is called without torch, which takes seconds to import.
        """
        return False

    def module(self, name: str) -> str | None:
        """Return the Python module whose code the network's weights depend on, for the signature; None for a library's."""
        return None
