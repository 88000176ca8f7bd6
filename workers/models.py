"""Named networks with `features(x)` and `head`: torchvision's classifiers, scalable ResNets, and the user's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from workers.errors import Rejected
from workers.networks import RESNETS, SCALABLE
from workers.small_maps import speed_up
from workers.spec import MemberSpec

# ImageNet's channel statistics: fixed, so that nothing is estimated from rows that a fit may not see, and right for
# weights trained elsewhere.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ONEDNN_BLOCK = 16  # channels that its kernels work on at once, at most
SMALL = 64  # below this side `stem: auto` takes the 3x3 stem without pooling


class Network(nn.Module):
    """(N, 3, H, W) float32 in [0, 1] -> (N, classes) logits, by way of `features` (N, D) and `head`."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D), what the head reads."""
        return cast(Tensor, self.trunk((x - self.mean) / self.std))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(x)))


class SmallResNet(nn.Module):
    """ResNet of basic blocks with any width; at width 64 its keys and outputs are torchvision's."""

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        planes = width
        for stage, count in enumerate(blocks):
            out, stride = width * 2**stage, 1 if stage == 0 else 2
            setattr(self, f"layer{stage + 1}", _stage(planes, out, count, stride))
            planes = out
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(planes, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = cast(nn.Module, stage)(x)
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))


def _stage(planes: int, out: int, count: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or planes != out:
        shortcut = nn.Sequential(nn.Conv2d(planes, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    rest = [BasicBlock(out, out) for _ in range(count - 1)]
    return nn.Sequential(BasicBlock(planes, out, stride, shortcut), *rest)


def build(spec: MemberSpec, classes: int, image_size: int) -> Network:
    """The member's network with fresh weights from its seed, or those of `weights:`. Raises Rejected."""
    torch.manual_seed(spec.seed)
    network = _built(spec, classes, image_size)
    speed_up(network)
    return network


def _built(spec: MemberSpec, classes: int, image_size: int) -> Network:
    network = _own(spec.arch, classes, image_size) if ":" in spec.arch else _named(spec, classes, image_size)
    if isinstance(network, Network):
        return network
    if spec.weights:
        _load(network, spec)
    head = getattr(network, "head", None)
    if ":" in spec.arch and callable(getattr(network, "features", None)) and isinstance(head, nn.Module):
        return Network(_Features(network), head)
    return _split(network, classes)


class _Features(nn.Module):
    """A user's network that has `features` and `head` of its own, without the head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        del network.head
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self.network).features(x))


def _named(spec: MemberSpec, classes: int, image_size: int) -> nn.Module:
    small = spec.stem == "cifar" or (spec.stem == "auto" and image_size < SMALL)
    if spec.arch in SCALABLE:
        blocks = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}[spec.arch]
        network: nn.Module = SmallResNet(blocks, spec.width, classes)
    elif spec.width != 64:
        raise Rejected(f"member {spec.name}: width changes {' and '.join(sorted(SCALABLE))} only, not {spec.arch}.")
    else:
        network = torchvision.models.get_model(spec.arch, weights=None, **_options(spec.arch, classes, image_size))
    if small and spec.arch in RESNETS:
        stem = nn.Conv2d(3, cast(nn.Conv2d, network.conv1).out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        network.conv1, network.maxpool = stem, nn.Identity()
    elif spec.stem == "cifar":
        raise Rejected(f"member {spec.name}: `stem: cifar` is for ResNets; {spec.arch} has a stem of its own.")
    return network


def _options(arch: str, classes: int, image_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {"num_classes": classes}
    if arch.startswith("vit"):
        options["image_size"] = image_size
    if arch in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if arch == "maxvit_t":
        options["input_size"] = (image_size, image_size)
    return options


def _own(arch: str, classes: int, image_size: int) -> nn.Module:
    module, _, name = arch.partition(":")
    try:
        network = getattr(importlib.import_module(module), name)(num_classes=classes, image_size=image_size)
    except Exception as error:
        raise Rejected(f"arch {arch}: calling it with num_classes and image_size failed: {error!r}.") from error
    if not isinstance(network, nn.Module):
        raise Rejected(f"arch {arch}: gave {type(network).__name__}, not a torch.nn.Module.")
    return network


def _split(network: nn.Module, classes: int) -> Network:
    """Cut a network before its last Linear; one that doesn't end in a Linear gives its logits as features."""
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears or cast(nn.Linear, network.get_submodule(linears[-1])).out_features != classes:
        return Network(network, nn.Identity())
    head = network.get_submodule(linears[-1])
    parent, _, name = linears[-1].rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return Network(network, head)


def linear_head(network: Network) -> bool:
    """Whether `concat` can start from this member's head."""
    return isinstance(network.head, nn.Linear)


def _load(network: nn.Module, spec: MemberSpec) -> None:
    """Start from a state dict; a head for another number of classes is left out. Never unpickles code."""
    path = cast(Path, spec.weights)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).split("\n")[0]
        raise Rejected(f"member {spec.name}: weights {path} can't be read as a plain state dict ({first}).") from None
    own = network.state_dict()
    if not isinstance(state, dict):
        raise Rejected(f"member {spec.name}: weights {path} hold no state dict.")
    kept = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    heads = {n for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    wrong = [k for k in own if k not in kept and k.rpartition(".")[0] not in heads and not k.endswith("num_batches_tracked")]
    if wrong:
        raise Rejected(f"member {spec.name}: weights {path} are of another network than {spec.arch} (at {wrong[0]}).")
    network.load_state_dict(kept, strict=False)


def memory_format(network: nn.Module, device: torch.device, precision: str) -> torch.memory_format:
    """channels_last, which is faster, where it is safe.

    oneDNN's float32 backward pass writes past its buffer in strided 1x1 convolutions of few channels in that order
    (github.com/uxlfoundation/oneDNN/issues/6035): such a network would crash, or train to wrong weights.
    """
    hit = device.type == "cpu" and precision == "float32" and any(_narrow(m) for m in network.modules())
    return torch.contiguous_format if hit else torch.channels_last


def _narrow(module: nn.Module) -> bool:
    strided = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1
    return strided and cast(nn.Conv2d, module).in_channels < ONEDNN_BLOCK


def import_from(paths: Iterable[str]) -> None:
    """Make the folders in which users keep networks of their own importable."""
    sys.path[:0] = [p for p in paths if p not in sys.path]
