"""Custom networks, named package.module:callable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.config.extensions import ARCHITECTURES, is_reference, load_reference
from workers.errors import UserInputError
from workers.models.source import ArchitectureSource

if TYPE_CHECKING:
    from torch import nn

    from workers.config.specs import MemberSpec


@ARCHITECTURES.register
class Own(ArchitectureSource):
    """Networks that a user's callable returns."""

    def check(self, name: str) -> None:
        """Raise ValueError if the name is not package.module:callable."""
        if not is_reference(name):
            raise ValueError("a custom network is named package.module:callable")

    def build(self, spec: MemberSpec, name: str, classes: int, image_size: int) -> nn.Module:
        """Call the user's callable with num_classes and image_size."""
        from torch import nn

        try:
            network = load_reference(name)(num_classes=classes, image_size=image_size)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, UserInputError) else error
            raise UserInputError(f"arch {name}: calling it with num_classes and image_size failed: {cause!r}.") from error
        if not isinstance(network, nn.Module):
            raise UserInputError(f"arch {name}: gave {type(network).__name__}, not a torch.nn.Module.")
        return network

    def module(self, name: str) -> str | None:
        """Return the callable's module."""
        return name.partition(":")[0]
