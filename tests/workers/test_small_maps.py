"""Convolutions of small maps against torch's own."""

import pytest
import torch
from torch import nn

from workers.models import build
from workers.small_maps import SmallMapConv2d, slow_down, speed_up
from workers.spec import MemberSpec


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 2), (3, 3), (4, 4)])
def test_they_are_torchs_up_to_rounding(shape: tuple[int, int], stride: int, bias: bool, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(5, 7, 3, stride=stride, padding=1, bias=bias).double().to(memory_format=layout)  # type: ignore[call-overload]
    ours = SmallMapConv2d(5, 7, 3, stride=stride, padding=1, bias=bias).double().to(memory_format=layout)  # type: ignore[call-overload]
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(6, 5, *shape, dtype=torch.double).contiguous(memory_format=layout)
    seen = []
    for conv in (theirs, ours):
        x = images.clone().requires_grad_()
        y = conv(x)
        (y * torch.arange(y.numel(), dtype=torch.double).view_as(y)).sum().backward()
        seen.append((y, x.grad, conv.weight.grad, *([conv.bias.grad] if bias else [])))
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
    speed_up(network)
    assert [type(m) is SmallMapConv2d for m in network] == [False] * len(kept) + [True]
    assert list(network.state_dict()) == names


def test_a_network_of_ours_has_them_and_gives_what_it_gave() -> None:
    network = build(MemberSpec(name="m", seed=1, width=8, stem="imagenet"), 10, 32).eval()
    plain = build(MemberSpec(name="m", seed=1, width=8, stem="imagenet"), 10, 32).eval()
    assert sum(isinstance(m, SmallMapConv2d) for m in network.modules()) == 16, "every 3x3 of a ResNet18"
    slow_down(plain)
    assert not any(isinstance(m, SmallMapConv2d) for m in plain.modules())
    images = torch.rand(5, 3, 32, 32)
    assert torch.allclose(network(images), plain(images), atol=1e-5)
