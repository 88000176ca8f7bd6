"""Mix pairs of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.config.extensions import AUGMENTATIONS, Augmentation, Labels

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@AUGMENTATIONS.register
class Mixup(Augmentation):
    """Mixes a batch with a permutation of itself, by one Beta(alpha, alpha) share.

    Source: Zhang et al. 2018, arXiv:1710.09412.
    """

    default, largest, order = 0.2, 10.0, 90
    meaning = "alpha of the Beta distribution that mixes pairs of images"

    def mix(self, x: Tensor, labels: Labels, generator: torch.Generator) -> tuple[Tensor, Labels]:
        """Mix a batch."""
        import torch

        source = generator
        if x.device.type == "cuda":  # the share is a number here, and nobody waits for a GPU to say it
            source = torch.Generator().manual_seed(generator.initial_seed())
        gammas = torch._standard_gamma(torch.full((2,), self.strength), generator=source)
        share = float(gammas[0] / gammas.sum()) if float(gammas.sum()) > 0 else 1.0
        other = torch.randperm(len(x), generator=generator, device=x.device)
        return x * share + x[other] * (1 - share), Labels(labels.first, labels.first[other], share, other)
