"""torchvision's classifiers, and its ResNets with any width and with a small stem.

`tests/workers/test_models.py` compares the list of names with torchvision's own.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, cast

from workers.config.extensions import ARCHITECTURES
from workers.errors import UserInputError
from workers.models.source import ArchitectureSource, PretrainedWeights

if TYPE_CHECKING:
    from torch import nn

    from workers.config.specs import Interpolation, MemberSpec

RESNETS = frozenset(
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d "
    "wide_resnet50_2 wide_resnet101_2".split()
)
SCALABLE = frozenset({"resnet18", "resnet34"})  # `width` changes these, which SmallResNet builds
OTHERS = frozenset(
    "alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 "
    "densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 "
    "efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s "
    "googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 "
    "mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf "
    "regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf "
    "regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf shufflenet_v2_x0_5 shufflenet_v2_x1_0 "
    "shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b "
    "swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 "
    "vit_h_14 vit_l_16 vit_l_32 ".split()
)
KNOWN = RESNETS | OTHERS
OWN_INPUT = ("googlenet", "inception_v3")  # with their published weights, they normalize images once more
SMALL = 64  # below this side `stem: auto` takes the 3x3 stem without pooling


@ARCHITECTURES.register
class Torchvision(ArchitectureSource):
    """torchvision's classifiers."""

    def check(self, name: str) -> None:
        """Raise ValueError if torchvision has no such classifier."""
        if name not in KNOWN:
            nearest = difflib.get_close_matches(name, sorted(KNOWN), 1)
            raise ValueError(f"unknown network {name!r}" + (f"; the nearest known is {nearest[0]}" if nearest else ""))

    def is_sure(self, name: str) -> bool:
        """Return whether SmallResNet builds the network."""
        return name in SCALABLE

    def pretrained(self, name: str) -> PretrainedWeights | None:
        """Return torchvision's best weights of a network, if they take images that are normalized as ours are."""
        import torchvision

        from workers.models.network import MEAN

        best = torchvision.models.get_model_weights(name).DEFAULT
        if name in OWN_INPUT or list(best.transforms().mean) != list(MEAN):
            return None
        file = best.url.rpartition("/")[2]
        match = re.search(r"-([0-9a-f]{8,})\.pth$", file)
        pixels = getattr(best.transforms(), "crop_size", [0])[0]
        size = round(best.meta["_file_size"] * 2**20)
        kind: Interpolation = "bicubic" if "bicubic" in str(best.transforms().interpolation).lower() else "bilinear"
        return PretrainedWeights(best.url, file, match[1] if match else "", size, pixels, kind)

    def build(self, spec: MemberSpec, name: str, classes: int, image_size: int) -> nn.Module:
        """Return the network; `width` and `stem` of the member change ResNets."""
        from torch import nn

        from workers.models.network import SmallResNet

        is_small = spec.stem == "cifar" or (spec.stem == "auto" and image_size < SMALL)
        if name in SCALABLE:
            blocks = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}[name]
            network: nn.Module = SmallResNet(blocks, spec.width, classes)
        elif spec.width != 64:
            raise UserInputError(f"member {spec.name}: width changes {' and '.join(sorted(SCALABLE))} only, not {name}.")
        else:
            import torchvision  # imported late: it takes more than a second

            network = torchvision.models.get_model(name, weights=None, **_options(name, classes, image_size))
        if is_small and name in RESNETS:
            stem = nn.Conv2d(3, cast(nn.Conv2d, network.conv1).out_channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
            network.conv1, network.maxpool = stem, nn.Identity()
        elif spec.stem == "cifar":
            raise UserInputError(f"member {spec.name}: `stem: cifar` is for ResNets; {name} has a stem of its own.")
        return network


def _options(name: str, classes: int, image_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {"num_classes": classes}
    if name.startswith("vit"):
        options["image_size"] = image_size
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name == "maxvit_t":
        options["input_size"] = (image_size, image_size)
    return options
