"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.config.extensions import OPTIMIZERS, OptimizerSpec

if TYPE_CHECKING:
    import torch


@OPTIMIZERS.register
class Sgd(OptimizerSpec):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = True

    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return torch's SGD in its fused form."""
        from torch.optim import SGD

        nesterov = self.nesterov and self.momentum > 0
        return SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=nesterov, fused=True)
