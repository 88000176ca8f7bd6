"""The base class of sources of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from workers.config.specs import Interpolation, MemberSpec


class PretrainedWeights(NamedTuple):
    """A file of weights that a source has for one of its networks.

    Attributes:
        url: Where it is.
        file: Its name.
        sha256: The first characters of its SHA-256; "" if the source names none.
        size: Its size in bytes; 0 if unknown.
        pixels: Side of the images that the network was trained on; 0 if unknown.
        interpolation: How these images were resized.
    """

    url: str
    file: str
    sha256: str = ""
    size: int = 0
    pixels: int = 0
    interpolation: Interpolation = "bilinear"

    def __str__(self) -> str:
        """Return the name and the size, in words."""
        return f"{self.file} ({self.size / 1e6:.0f} MB)" if self.size else self.file


class ArchitectureSource(ABC):
    """A source of networks: one module of `workers/models/architectures/` with one class, registered there.

    In a team file, `arch: SOURCE/NAME` names a network of a source, `arch: NAME` one of torchvision's, and
    `arch: package.module:callable` a custom network.
    """

    @abstractmethod
    def check(self, name: str) -> None:
        """Raise ValueError if there is no such network. Must not import torch."""

    @abstractmethod
    def build(self, spec: MemberSpec, name: str, classes: int, image_size: int) -> nn.Module:
        """Return a network with fresh weights from torch's global generator, seeded with the member's seed.

        It turns normalized images (N, 3, H, W) float32 into logits (N, classes). A network that ends in a Linear layer, or has
        `features` and a `head`, gives `concat` its features.

        Args:
            spec: The member.
            name: The name after SOURCE/, or all of `arch`.
            classes: Number of classes.
            image_size: Side of the images in pixels.

        Raises:
            UserInputError: If the network cannot be built as specified.
        """

    def is_sure(self, name: str) -> bool:
        """Return whether a network trains with any recipe and any images, and ends in a Linear layer.

        If so, it is not tried out before a sweep. Must not import torch, which takes seconds.
        """
        return False

    def pretrained(self, name: str) -> PretrainedWeights | None:
        """Return the weights that `weights: imagenet` stands for, or None if there are none. May import torch."""
        return None

    def statistics(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return the means and standard deviations of the three channels by which a network's images are normalized.

        None stands for ImageNet's. May import torch.
        """
        return None

    def module(self, name: str) -> str | None:
        """Return the module whose code determines the weights, for the signature; None for a library's network."""
        return None
