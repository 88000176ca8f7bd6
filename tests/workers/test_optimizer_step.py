"""An optimizer's step on a CPU: the same as torch's own, without torch's copies of tensors in channels_last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tests.factories import member
from workers.training.optimization import make_optimizer, take_optimizer_step


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = (
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(6, 5, 3, stride=2),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    return nn.Sequential(*parts).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def taken(kind: dict[str, Any], ours: bool, steps: int = 4) -> tuple[nn.Module, torch.optim.Optimizer, set[str]]:
    """A network after some steps, and the operations of the last one."""
    model = network()
    optimizer = make_optimizer(member(optimizer=kind), model)
    names: set[str] = set()
    for step in range(steps):
        x = torch.randn(7, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        model(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            if ours:
                take_optimizer_step(optimizer)
            else:
                optimizer.step()
        names = {event.key for event in profiled.key_averages()}
        optimizer.zero_grad(set_to_none=True)
    return model, optimizer, names


@pytest.mark.parametrize(
    "kind", [{"kind": "sgd"}, {"kind": "sgd", "momentum": 0.0}, {"kind": "adamw"}], ids=["sgd", "plain", "adamw"]
)
def test_it_is_torchs_own_and_copies_nothing(kind: dict[str, Any]) -> None:
    (theirs, their_optimizer, copied), (ours, our_optimizer, names) = (taken(kind, ours) for ours in (False, True))
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
        kept = their_optimizer.state[one]
        assert set(kept) == set(our_optimizer.state[other])
        for name, value in kept.items():
            assert torch.equal(value, our_optimizer.state[other][name])
            assert value.stride() == our_optimizer.state[other][name].stride()
    assert "aten::clone" in copied, "else there is nothing to save any more"
    assert "aten::clone" not in names
