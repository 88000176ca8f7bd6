"""Count multiply-adds of networks, a measure of inference cost that is the same on every machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from workers.models.small_conv import plain_convolutions


def multiply_adds(network: nn.Module, size: int) -> int:
    """Return a network's multiply-adds, in convolutions and matrix products, for an image of `size` x `size` pixels."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    image = torch.zeros(1, 3, size, size, device=device)
    with plain_convolutions(network):
        return count_multiply_adds(lambda: network(image))


def count_multiply_adds(run: Callable[[], object]) -> int:
    """Return the multiply-adds of all convolutions and matrix products that a function calls."""
    from torch.utils.flop_counter import FlopCounterMode

    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused operation hides its matrix products from the counter
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)
    return int(counter.get_total_flops()) // 2
