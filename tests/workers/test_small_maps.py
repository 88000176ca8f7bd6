"""Convolutions of small maps against torch's own."""

import pytest
import torch
from torch import nn

from workers.config.specs import MemberSpec
from workers.models.build import build
from workers.models.small_conv import SmallConv2d, use_plain_conv, use_small_conv


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 2), (3, 3), (4, 4)])
def test_they_are_torchs_up_to_rounding(shape: tuple[int, int], stride: int, bias: bool, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(5, 7, 3, stride=stride, padding=1, bias=bias).double().to(memory_format=layout)  # type: ignore[call-overload]
    ours = SmallConv2d(5, 7, 3, stride=stride, padding=1, bias=bias).double().to(memory_format=layout)  # type: ignore[call-overload]
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(6, 5, *shape, dtype=torch.double).contiguous(memory_format=layout)
    seen = []
    convolutions: tuple[nn.Conv2d, ...] = (theirs, ours)
    for conv in convolutions:
        x = images.clone().requires_grad_()
        y = conv(x)
        (y * torch.arange(y.numel(), dtype=torch.double).view_as(y)).sum().backward()
        seen.append((y, x.grad, conv.weight.grad, *([conv.bias.grad] if conv.bias is not None else [])))
    for a, b in zip(*seen, strict=True):
        assert a is not None
        assert b is not None
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-11)


def test_only_convolutions_that_are_the_same_are_given_this_form() -> None:
    kept = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=1, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, stride=3),
        nn.Conv2d(4, 4, 3, padding=1, stride=(1, 2)),
    ]
    network = nn.Sequential(*kept, nn.Conv2d(4, 4, 3, padding=1))
    names = list(network.state_dict())
    use_small_conv(network)
    assert [type(m) is SmallConv2d for m in network] == [False] * len(kept) + [True]
    assert list(network.state_dict()) == names


def test_a_network_of_ours_has_them_and_gives_what_it_gave() -> None:
    network = build(MemberSpec(name="m", seed=1, width=8, stem="imagenet"), 10, 32).eval()
    plain = build(MemberSpec(name="m", seed=1, width=8, stem="imagenet"), 10, 32).eval()
    assert sum(isinstance(m, SmallConv2d) for m in network.modules()) == 16, "every 3x3 of a ResNet18"
    use_plain_conv(plain)
    assert not any(isinstance(m, SmallConv2d) for m in plain.modules())
    images = torch.rand(5, 3, 32, 32)
    assert torch.allclose(network(images), plain(images), atol=1e-5)
