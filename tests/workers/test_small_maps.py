"""Convolutions of small maps against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

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


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 1), (2, 2)])
def test_gradients_are_those_of_torchs_slices_bit_for_bit_with_one_kernel_of_zeros(side: int, stride: int) -> None:
    """Torch fills a kernel of zeros for each slice: a fifth of a step of ResNet18 at 32 x 32."""
    torch.manual_seed(0)
    conv = SmallConv2d(16, 24, 3, stride=stride, padding=1, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(8, 16, side, side).contiguous(memory_format=torch.channels_last)
    after = conv.side_after(side)
    kernel = conv.weight.detach().clone().requires_grad_()
    channels_last = kernel.permute(0, 2, 3, 1)
    slices = [channels_last[:, 1 - i : 1 - i + side, 1 - j : 1 - j + side] for i in range(after) for j in range(after)]
    upstream = torch.randn(8, 24, after, after).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        expected = functional.linear(images.permute(0, 2, 3, 1).flatten(1), torch.cat([one.flatten(1) for one in slices]))
        found = conv(images)
    expected.float().backward(upstream.permute(0, 2, 3, 1).flatten(1))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        found.float().backward(upstream)
    assert torch.equal(found.permute(0, 2, 3, 1).flatten(1), expected)
    assert conv.weight.grad is not None
    assert kernel.grad is not None
    assert torch.equal(conv.weight.grad, kernel.grad)
    assert conv.weight.grad.stride() == conv.weight.stride()
    assert sum(event.count for event in profiled.key_averages() if event.key == "aten::zero_") <= 1


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


@pytest.mark.parametrize(("side", "stride", "kernel", "groups"), [(1, 2, 3, 32), (1, 2, 5, 32), (1, 2, 5, 1), (2, 3, 3, 1)])
def test_gradients_in_bfloat16_are_right_where_a_stride_steps_over_the_map(
    side: int, stride: int, kernel: int, groups: int
) -> None:
    """oneDNN leaves them uninitialised: what other tensors left in memory got into the weights, in a process's first steps."""
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, kernel, stride, kernel // 2, groups=groups, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(16, 32, side, side).contiguous(memory_format=torch.channels_last)

    def gradient(network: nn.Conv2d, is_low: bool) -> torch.Tensor:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            result = network(images)
        for _ in range(3):  # what a process leaves in memory
            torch.full((conv.weight.numel(),), 1e30)
        result.float().sum().backward()
        assert network.weight.grad is not None
        return network.weight.grad.clone()

    expected = gradient(conv, False)
    use_small_conv(conv)
    found = gradient(conv, True)
    assert torch.allclose(found, expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))


def test_a_stride_that_steps_over_the_map_gives_torchs_numbers() -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(8, 8, 5, 2, 2, groups=8)
    images = torch.randn(4, 8, 1, 3).to(torch.bfloat16)
    ours = nn.Conv2d(8, 8, 5, 2, 2, groups=8).to(torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    use_small_conv(ours)
    expected = theirs(images.float())
    assert ours(images).shape == expected.shape
    assert torch.allclose(ours(images).float(), expected, atol=0.05)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    use_plain_conv(ours)
    assert type(ours) is nn.Conv2d
