"""The artifact of a training: owns every path and file name of it, and reads it back.

    HOME/jobs/SIGNATURE/checkpoint/EPOCH-STEP/   the last two checkpoints, while it trains
    HOME/jobs/SIGNATURE/last/                    the last checkpoint of a cycle that another one goes on from
    HOME/jobs/SIGNATURE/fit/                     weights.safetensors, outputs.safetensors, manifest.json (written last)
    HOME/jobs/SIGNATURE/.lock                    held by the process that trains it

Reading a manifest needs no torch.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from workers.diagnostics.callback import TrainingCallback
from workers.diagnostics.faults import fault_point
from workers.errors import ConclaveError, CorruptFileError, TrainingStopped
from workers.storage.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from torch import Tensor

JOBS = "jobs"
UNFINISHED_CHECKPOINT = ".new"  # in the folder of checkpoints: one that is being written


def class_order(member_classes: Sequence[str], classes: Sequence[str], name: str) -> list[int]:
    """Return where each of `classes` stands among a member's classes.

    Args:
        member_classes: Class names in the order of the member's logits.
        classes: Class names in the wanted order.
        name: The member's name, for the message.

    Raises:
        ConclaveError: If the two are not the same classes.
    """
    if sorted(member_classes) != sorted(classes):
        raise ConclaveError(f"member {name} knows other classes than the data: {', '.join(member_classes)}; it can't be fused.")
    return [list(member_classes).index(c) for c in classes]


@dataclass(frozen=True)
class MemberArtifact:
    """The artifact of one training below `root`, which is HOME/jobs/SIGNATURE or the artifacts of a tracking run."""

    root: Path

    @classmethod
    def in_home(cls, home: Path, signature: str) -> MemberArtifact:
        """Return the artifact with this signature, whether it is there or not."""
        return cls(home / JOBS / signature)

    @classmethod
    def all_in_home(cls, home: Path) -> list[MemberArtifact]:
        """Return every artifact of a home, finished or not."""
        return [cls(root) for root in (home / JOBS).glob("[!.]*")]

    @property
    def checkpoint(self) -> Path:
        """The folder of checkpoints."""
        return self.root / "checkpoint"

    @property
    def handover(self) -> Path:
        """The folder of the last checkpoint, from which another training goes on."""
        return self.root / "last"

    @property
    def folder(self) -> Path:
        """The folder of the finished training."""
        return self.root / "fit"

    @property
    def lock_path(self) -> Path:
        """The lock file, held by the process that trains."""
        return self.root / ".lock"

    @property
    def incoming_checkpoint(self) -> Path:
        """Where checkpoints from a tracking run are put together."""
        return self.root / ".checkpoint.new"

    @property
    def _incoming(self) -> Path:
        return self.root / ".fit.new"

    @property
    def done(self) -> bool:
        """True if the training is finished."""
        return (self.folder / MANIFEST).is_file()

    def manifest(self) -> dict[str, Any]:
        """Return the record of the training: member, fold, seed, seconds, history, checksums.

        Raises:
            FileNotFoundError: If the training is not finished.
            CorruptFileError: If the manifest is damaged.
        """
        try:
            return read_manifest(self.folder)
        except CorruptFileError as error:
            raise CorruptFileError(f"{error} Remove {self.root}, and the next sweep trains it again.") from None

    def weights(self) -> dict[str, Tensor]:
        """Return the final weights, verified by their checksum. Raises CorruptFileError."""
        from workers.storage.tensor_folder import load_tensors

        return load_tensors(self.folder, "weights")

    def outputs(self) -> dict[str, Tensor]:
        """Return the outputs, verified by their checksum.

        Returns:
            For each part (`fuse` and `test`; `oof` too of a fold training): PART_rows (n,) int64, PART_logits (n, C) float32
            and, of a full training, PART_features (n, D) float32.

        Raises:
            CorruptFileError: If the file is damaged.
        """
        from workers.storage.tensor_folder import load_tensors

        return load_tensors(self.folder, "outputs")

    @contextlib.contextmanager
    def locked(self, callback: TrainingCallback) -> Iterator[None]:
        """Let only one process train this at a time. A dead process's lock is free. Raises TrainingStopped while it waits."""
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_path)
        has_waited = False
        while True:
            try:
                lock.acquire(timeout=1)
                break
            except Timeout:
                if callback.should_stop():
                    raise TrainingStopped("stopped while another process trains the same") from None
                if not has_waited:
                    callback.note("another process trains the same: waiting for it")
                has_waited = True
                callback.on_step_end()
        try:
            self._clear()
            yield
        finally:
            lock.release()

    def remove_leftovers(self) -> None:
        """Remove what a killed process left here, unless another process is at work."""
        if self.root.is_dir():
            with contextlib.suppress(Timeout), FileLock(self.lock_path, timeout=0):
                self._clear()

    def _clear(self) -> None:
        leftovers = [self._incoming, self.incoming_checkpoint, self.checkpoint / UNFINISHED_CHECKPOINT]
        for path in (*leftovers, *([self.checkpoint] if self.done else [])):
            shutil.rmtree(path, ignore_errors=True)

    def publish(
        self, weights: dict[str, Tensor], outputs: dict[str, Tensor], record: dict[str, Any], hand_over: bool = False
    ) -> None:
        """Make the training done: write everything to a folder beside it, then rename that into place.

        Args:
            weights: The final weights.
            outputs: The outputs (see `outputs`).
            record: What the manifest says.
            hand_over: Whether to keep the last checkpoint for a training that goes on from this one.
        """
        from workers.storage.tensor_folder import replace_folder, save_tensors

        shutil.rmtree(self._incoming, ignore_errors=True)
        save_tensors(self._incoming, {"weights": weights, "outputs": outputs}, record)
        fault_point("artifact.publish")
        if hand_over and self.checkpoint.exists():
            self.drop_handover()
            shutil.copytree(self.checkpoint, self.handover)
        replace_folder(self._incoming, self.folder)
        fault_point("artifact.published")
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def drop_handover(self) -> None:
        """Remove the checkpoint that was kept for another training, once nobody goes on from it any more."""
        shutil.rmtree(self.handover, ignore_errors=True)

    def import_folder(self, folder: Path) -> None:
        """Take a training that was finished elsewhere, if every file is whole. Raises CorruptFileError."""
        from workers.storage.tensor_folder import replace_folder, verify_folder

        self.root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._incoming, ignore_errors=True)
        shutil.copytree(folder, self._incoming)
        verify_folder(self._incoming)
        replace_folder(self._incoming, self.folder)

    def delete(self) -> None:
        """Remove everything of this training, its checkpoints too."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        self.drop_handover()
