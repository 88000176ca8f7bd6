"""Knowledge distillation: a student's teacher, and the loss between their outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.models.network import Network

TINY = 1e-12


class Teacher:
    """The vote of finished networks: (N, 3, H, W) float32 in [0, 1] -> (N, C) float32 probabilities.

    The teacher is a vote, not a fusion fitted on *fuse*: no teacher has seen the *fuse* rows, so a student's outputs on them
    are unbiased.

    Args:
        networks: The members' networks, in evaluation mode.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the mean of the networks' probabilities."""
        return torch.stack([network(x).float().softmax(1) for network in self.networks]).mean(0)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        """Move the networks to a device."""
        for network in self.networks:
            network.to(device, memory_format=memory_format)  # type: ignore[call-overload]


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Return the KL divergence between teacher and student probabilities, both softened by a temperature.

    The factor of the squared temperature preserves the scale of the gradients (Hinton et al. (2015), arXiv:1503.02531).

    Args:
        logits: (N, C) of the student.
        taught: (N, C) probabilities of the teacher.
        temperature: Above 1, small probabilities count for more.
        weights: (N,) weight of each row; None for equal weights.
    """
    softened = (taught.clamp(min=TINY).log() / temperature).log_softmax(1)
    answered = (logits / temperature).log_softmax(1)
    if weights is None:
        return F.kl_div(answered, softened, reduction="batchmean", log_target=True) * temperature**2
    losses = F.kl_div(answered, softened, reduction="none", log_target=True).sum(1)
    return (losses * weights).mean() * temperature**2
