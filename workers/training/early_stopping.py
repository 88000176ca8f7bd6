"""Keep a training's best weights, and stop it after several epochs without improvement."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from workers.config.specs import StopSpec
from workers.diagnostics.callback import Epoch

LOSS = "stop/loss"


class EarlyStopping:
    """Watches the loss on the rows held out for early stopping. Does nothing without such rows.

    Attributes:
        best: The weights of the epoch with the lowest loss; empty if none were kept.

    Args:
        spec: The patience, in epochs without a lower loss; None to never stop early.
        has_rows: Whether rows are held out.
    """

    def __init__(self, spec: StopSpec | None, has_rows: bool) -> None:
        self.spec, self.has_rows = spec, has_rows
        self.best: dict[str, Tensor] = {}

    def track(self, history: Sequence[Epoch], network: nn.Module) -> None:
        """Keep a copy of the weights if the last epoch is the best one so far."""
        if self.has_rows and history[-1][LOSS] <= min(epoch[LOSS] for epoch in history):
            self.best = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def is_over(self, history: Sequence[Epoch]) -> bool:
        """Return whether the patience is exhausted."""
        if self.spec is None or not history:
            return False
        losses = [epoch[LOSS] for epoch in history]
        return len(losses) - 1 - losses.index(min(losses)) >= self.spec.patience

    def restore_best(self, network: nn.Module) -> None:
        """Load the best weights into a network, if any were kept."""
        if self.best:
            network.load_state_dict(self.best)
