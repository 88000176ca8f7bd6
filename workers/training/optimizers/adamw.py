"""Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.config.extensions import OPTIMIZERS, OptimizerSpec

if TYPE_CHECKING:
    import torch


@OPTIMIZERS.register
class AdamW(OptimizerSpec):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)

    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return torch's AdamW in its fused form."""
        from torch.optim import AdamW as TorchAdamW

        return TorchAdamW(parameters, self.lr, weight_decay=self.weight_decay, fused=True)
