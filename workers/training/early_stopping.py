"""Keep the best weights of a training, and end it once it got no better for some epochs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from workers.config.specs import StopSpec
from workers.diagnostics.callback import Epoch

LOSS = "stop/loss"


class EarlyStopping:
    """Watches the loss on the rows that are set apart for it. Without such rows it does nothing.

    Attributes:
        best: The weights of the epoch with the lowest loss, or nothing.

    Args:
        spec: After how many epochs without a lower loss the training ends; None for never.
        has_rows: Whether rows are set apart.
    """

    def __init__(self, spec: StopSpec | None, has_rows: bool) -> None:
        self.spec, self.has_rows = spec, has_rows
        self.best: dict[str, Tensor] = {}

    def track(self, history: Sequence[Epoch], network: nn.Module) -> None:
        """Keep a copy of the weights if the last epoch is the best one so far."""
        if self.has_rows and history[-1][LOSS] <= min(epoch[LOSS] for epoch in history):
            self.best = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def is_over(self, history: Sequence[Epoch]) -> bool:
        """Return whether the training has got no better for as many epochs as it may."""
        if self.spec is None or not history:
            return False
        losses = [epoch[LOSS] for epoch in history]
        return len(losses) - 1 - losses.index(min(losses)) >= self.spec.patience

    def restore_best(self, network: nn.Module) -> None:
        """Give a network the best weights, if there are any."""
        if self.best:
            network.load_state_dict(self.best)
