"""The interface of all networks, `features(x)` and `head`, and ResNets of any width."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

# ImageNet's channel statistics: fixed, so that nothing is estimated from held-out rows, and right for pretrained weights.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ONEDNN_BLOCK = 16  # most channels that an oneDNN kernel works on at once


class Network(nn.Module):
    """A network in two parts: (N, 3, H, W) float32 in [0, 1] -> (N, C) logits, by way of `features` (N, D) and `head`.

    Args:
        trunk: Turns normalized images (N, 3, H, W) into features (N, D).
        head: Turns features into logits (N, C).
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """Return the features: (N, 3, H, W) float32 in [0, 1] -> (N, D)."""
        return cast(Tensor, self.trunk((x - self.mean) / self.std))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return cast(Tensor, self.head(self.features(x)))


class BasicBlock(nn.Module):
    """Two convolutions with a shortcut around them (He et al. 2015, arXiv:1512.03385): (N, P, H, W) -> (N, O, H', W').

    Its keys and outputs are those of torchvision's block. It is defined here because importing torchvision takes more than a
    second, mostly for torch's compiler.

    Args:
        planes: Input channels P.
        out: Output channels O.
        stride: Stride of the first convolution.
        downsample: Maps the input to the output's shape; None if the shapes are equal.
    """

    def __init__(self, planes: int, out: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's feature maps."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(out))


class SmallResNet(nn.Module):
    """A ResNet of basic blocks with any width. At width 64 its keys and outputs are torchvision's.

    Args:
        blocks: Number of blocks in each of the four stages.
        width: Channels of the first stage.
        classes: Number of classes.
    """

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
        """Return the logits (N, C) of normalized images (N, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = cast(nn.Module, stage)(x)
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))


def _stage(planes: int, out: int, count: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or planes != out:
        shortcut = nn.Sequential(nn.Conv2d(planes, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    blocks = [BasicBlock(out, out) for _ in range(count - 1)]
    return nn.Sequential(BasicBlock(planes, out, stride, shortcut), *blocks)


def has_linear_head(network: Network) -> bool:
    """Return whether `concat` can start from this member's head."""
    return isinstance(network.head, nn.Linear)


def memory_format(network: nn.Module, device: torch.device, precision: str) -> torch.memory_format:
    """Return channels_last, which is faster, if it is safe; else contiguous_format.

    oneDNN's float32 backward pass writes past its buffer in strided 1x1 convolutions of few channels in that layout
    (github.com/uxlfoundation/oneDNN/issues/6035): such a network would crash, or train to wrong weights.

    Args:
        network: The network.
        device: The device that it trains on.
        precision: "float32" or "bfloat16".
    """
    if isinstance(getattr(network, "trunk", None), nn.Identity):  # it takes features, which have no channels of pixels
        return torch.contiguous_format
    is_unsafe = device.type == "cpu" and precision == "float32" and any(_narrow(m) for m in network.modules())
    return torch.contiguous_format if is_unsafe else torch.channels_last


def _narrow(module: nn.Module) -> bool:
    is_strided = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1
    return is_strided and cast(nn.Conv2d, module).in_channels < ONEDNN_BLOCK
