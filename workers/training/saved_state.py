"""Save a training's state to checkpoints, and resume the training from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.errors import CorruptFileError, first_line
from workers.models.network import Network
from workers.storage.checkpoint_record import CheckpointRecord
from workers.storage.checkpoints import Checkpoints, State
from workers.training.averaging import WeightAverages
from workers.training.early_stopping import EarlyStopping
from workers.training.optimization import load_optimizer_state, optimizer_state


@dataclass(frozen=True)
class SavedState:
    """Writes a training's checkpoints, and restores them.

    Attributes:
        checkpoints: The checkpoints on disk; None to keep none.
        network: The network being trained.
        optimizer: Its optimizer.
        averages: The averages of its weights.
        stopping: Keeps its best weights.
    """

    checkpoints: Checkpoints | None
    network: Network
    optimizer: torch.optim.Optimizer
    averages: WeightAverages
    stopping: EarlyStopping

    def save(self, record: CheckpointRecord) -> None:
        """Write a checkpoint. `record` says how far the training is."""
        if self.checkpoints is None:
            return
        groups: dict[str, dict[str, Tensor]] = {
            "network": self.network.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            **self.averages.states(),
            **({"best": self.stopping.best} if self.stopping.best else {}),
        }
        self.checkpoints.save(groups, record.model_copy(update={"average": self.averages.settings}))

    def restore(self, first_end: int) -> CheckpointRecord | None:
        """Resume from the newest checkpoint, if it leads to all missing members.

        Args:
            first_end: Number of epochs after which the first missing member is made.

        Returns:
            The checkpoint's record; None if the training starts from scratch.

        Raises:
            CorruptFileError: If the checkpoint belongs to another network, or every checkpoint is damaged.
        """
        state = self._usable(first_end)
        if state is None:
            return None
        try:
            self.network.load_state_dict(state.tensors["network"])
            load_optimizer_state(self.optimizer, self.network, state.tensors["optimizer"])
            self.averages.load_states(state.tensors)
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            raise CorruptFileError(f"{state.folder}: not a checkpoint of this network ({first_line(error)})") from None
        self.stopping.best = state.tensors.get("best", {})
        return state.record

    def _usable(self, first_end: int) -> State | None:
        """Return the newest checkpoint. Remove all checkpoints if it cannot lead to every missing member.

        It may lie past the end of a snapshot whose artifact was lost, or lack an average that the recipe has since added.
        """
        state = self.checkpoints.newest() if self.checkpoints else None
        if state is None or self.checkpoints is None:
            return None
        record = state.record
        if record.position <= (first_end, 0) and self.averages.settings in (None, record.average):
            return state
        self.checkpoints.note(f"starts from scratch: its checkpoint of epoch {record.epoch} cannot lead to the missing members")
        self.checkpoints.clear()
        return None
