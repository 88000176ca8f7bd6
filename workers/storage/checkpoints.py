"""Keep the last two checkpoints of a training, each complete and checksummed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workers.diagnostics.faults import fault_point
from workers.errors import CorruptFileError
from workers.storage.checkpoint_record import CheckpointRecord
from workers.storage.manifest import MANIFEST, read_manifest
from workers.storage.tensor_folder import Groups, load_tensors, replace_folder, save_tensors
from workers.storage.training_folder import UNFINISHED_CHECKPOINT

CHECKPOINTS_TO_KEEP = 2


def checkpoint_name(epoch: int, step: int) -> str:
    """Return the folder name of a checkpoint. Names sort as positions do."""
    return f"{epoch:06d}-{step:08d}"


@dataclass(frozen=True)
class State:
    """The content of a checkpoint: its folder, its record and its tensors, by group and name."""

    folder: Path
    record: CheckpointRecord
    tensors: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, in `folder`/EPOCH-STEP.

    Attributes:
        folder: Folder that holds the checkpoints.
        owner: Unique id of the training: the signature of its first member.
        note: Called with a sentence for each checkpoint that could not be written or read, if the training can continue.
    """

    folder: Path
    owner: str
    note: Callable[[str], None] = lambda text: None

    def save(self, tensors: Groups, record: CheckpointRecord) -> None:
        """Write a checkpoint. Disk errors are noted, not raised: the training continues with the older checkpoints."""
        new, target = self.folder / UNFINISHED_CHECKPOINT, self.folder / checkpoint_name(*record.position)
        shutil.rmtree(new, ignore_errors=True)
        try:
            save_tensors(new, tensors, record.model_copy(update={"owner": self.owner}), "checkpoint")
            fault_point("checkpoint.publish")
            replace_folder(new, target)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            self.note(f"the checkpoint after epoch {record.epoch} could not be written ({error.strerror}): {self.folder}")
            return
        for old in self.complete()[:-CHECKPOINTS_TO_KEEP]:
            shutil.rmtree(old, ignore_errors=True)

    def clear(self) -> None:
        """Remove all checkpoints, so that the training starts from scratch."""
        for folder in self.complete():
            shutil.rmtree(folder, ignore_errors=True)

    def complete(self) -> list[Path]:
        """Return the folders of the complete checkpoints, oldest first."""
        return sorted(p.parent for p in self.folder.glob(f"[0-9]*/{MANIFEST}"))

    def newest(self) -> State | None:
        """Return the newest readable checkpoint, or None if there are no checkpoints.

        Raises:
            CorruptFileError: If there are checkpoints and all are damaged. The message names the files.
        """
        problems: list[str] = []
        for folder in reversed(self.complete()):
            try:
                state = self._read(folder)
            except CorruptFileError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                self.note(f"resuming from an earlier checkpoint: {problem}")
            for later in [f for f in self.complete() if f > folder]:
                shutil.rmtree(later)
            return state
        if problems:
            raise CorruptFileError("every checkpoint is bad: " + " ".join(problems))
        return None

    def _read(self, folder: Path) -> State:
        record = read_manifest(folder, CheckpointRecord)
        if record.owner != self.owner:
            raise CorruptFileError(f"{folder}: belongs to another training ({record.owner}).")
        if folder.name != checkpoint_name(*record.position):
            raise CorruptFileError(f"{folder}: holds the checkpoint of another step.")
        return State(folder, record, {Path(name).stem: load_tensors(folder, name) for name in record.files})
