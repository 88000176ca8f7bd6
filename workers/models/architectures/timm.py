"""Classifiers of timm, as `arch: timm/NAME` (extra `conclave-ensembles[timm]`)."""

from __future__ import annotations

import difflib
import importlib.util
from typing import TYPE_CHECKING, Any

from workers.config.extensions import ARCHITECTURES
from workers.errors import UserInputError
from workers.models.source import ArchitectureSource, PretrainedWeights

if TYPE_CHECKING:
    from torch import nn

    from workers.config.specs import MemberSpec

HUB = "https://huggingface.co/{}/resolve/main/model.safetensors"


@ARCHITECTURES.register
class Timm(ArchitectureSource):
    """timm's classifiers. A name may have the tag of its weights, as in timm/resnet18.a1_in1k."""

    def check(self, name: str) -> None:
        """Raise ValueError if timm is not installed. Its names are checked when a network is built, because that needs torch."""
        if importlib.util.find_spec("timm") is None:
            raise ValueError("timm is not installed: `pip install 'conclave-ensembles[timm]'`")

    def build(self, spec: MemberSpec, name: str, classes: int, image_size: int) -> nn.Module:
        """Return the network, for images of this size where its architecture depends on it."""
        import timm

        if spec.width != 64 or spec.stem != "auto":
            raise UserInputError(f"member {spec.name}: width and stem change torchvision's ResNets only, not timm/{name}.")
        settings = _settings(name)
        options: dict[str, Any] = {"img_size": image_size} if settings.fixed_input_size else {}
        try:
            network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **options)
        except Exception as error:  # its networks check their arguments in many ways
            raise UserInputError(f"member {spec.name}: timm/{name} can't be built for {image_size} pixels ({error}).") from error
        return network

    def pretrained(self, name: str) -> PretrainedWeights | None:
        """Return the weights of a network on the Hugging Face hub, where timm publishes them."""
        settings = _settings(name)
        if not settings.hf_hub_id:
            return None
        repository = str(settings.hf_hub_id)
        return PretrainedWeights(
            HUB.format(repository),
            f"{repository.replace('/', '--')}.safetensors",
            pixels=int(settings.input_size[1]),
            interpolation="bicubic" if settings.interpolation == "bicubic" else "bilinear",
        )

    def statistics(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return the channel statistics by which timm normalizes the network's images."""
        settings = _settings(name)
        return tuple(settings.mean), tuple(settings.std)


def _settings(name: str) -> Any:
    """Return timm's settings for a network: its image size, statistics and place on the hub. Raises UserInputError."""
    import timm

    base = name.partition(".")[0]
    if not timm.is_model(base):
        nearest = difflib.get_close_matches(base, timm.list_models(), 1)
        raise UserInputError(f"arch timm/{name}: timm has no such network{f'; the nearest is {nearest[0]}' if nearest else ''}.")
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        known = ", ".join(one.partition(".")[2] for one in timm.list_pretrained(base))
        raise UserInputError(f"arch timm/{name}: timm has no such tag of {base}; it has {known}.") from None
