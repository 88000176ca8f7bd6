"""Who teaches a student, and how far the student's answers are from the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.models import Network

TINY = 1e-12


class Teacher:
    """The vote of finished networks: (N, 3, H, W) float32 in [0, 1] -> (N, C) probabilities, float32.

    A vote, and not a fusion that was fitted on *fuse*: so a student's own outputs on *fuse* stay those of rows that nobody
    who taught it has seen.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([network(x).float().softmax(1) for network in self.networks]).mean(0)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        for network in self.networks:
            network.to(device, memory_format=memory_format)  # type: ignore[call-overload]


def distance(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Of (N, C) logits from (N, C) probabilities: KL divergence, both softened, times T² so that gradients keep their size.

    Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network".
    """
    softened = (taught.clamp(min=TINY).log() / temperature).log_softmax(1)
    spoken = (logits / temperature).log_softmax(1)
    return F.kl_div(spoken, softened, reduction="batchmean", log_target=True) * temperature**2
