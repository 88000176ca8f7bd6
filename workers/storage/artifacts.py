"""Write and read a member's artifact. Defines all of its paths and file names.

    HOME/jobs/SIGNATURE/fit/     weights.safetensors, outputs.safetensors, manifest.json (written last)
    HOME/jobs/SIGNATURE/later/   outputs.safetensors on rows that were added after the training, manifest.json
    HOME/jobs/SIGNATURE/.lock    held by the process that trains it

A training writes one artifact for each of its members. Reading a manifest needs no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workers.diagnostics.faults import fault_point
from workers.errors import ConclaveError, CorruptFileError
from workers.storage.files import file_lock
from workers.storage.manifest import MANIFEST, Manifest, read_manifest
from workers.storage.training_record import TrainingRecord

if TYPE_CHECKING:
    from torch import Tensor

JOBS = "jobs"


def class_order(member_classes: Sequence[str], classes: Sequence[str], name: str) -> list[int]:
    """Return the index of each of `classes` among a member's classes.

    Args:
        member_classes: Class names in the order of the member's logits.
        classes: Class names in the wanted order.
        name: The member's name, for the message.

    Raises:
        ConclaveError: If the two sets of classes differ.
    """
    if sorted(member_classes) != sorted(classes):
        raise ConclaveError(f"member {name} knows other classes than the data: {', '.join(member_classes)}; it can't be fused.")
    return [list(member_classes).index(c) for c in classes]


class LaterRecord(Manifest):
    """Record of outputs on rows that came after a training.

    Attributes:
        weights_sha256: Digest of the weights that computed them.
    """

    weights_sha256: str


@dataclass(frozen=True)
class MemberArtifact:
    """The artifact of one member below `root`, which is HOME/jobs/SIGNATURE or the artifacts of a tracking run."""

    root: Path

    @classmethod
    def in_home(cls, home: Path, signature: str) -> MemberArtifact:
        """Return the artifact with this signature, which need not exist."""
        return cls(home / JOBS / signature)

    @classmethod
    def all_in_home(cls, home: Path) -> list[MemberArtifact]:
        """Return every artifact of a home, finished or not."""
        return [cls(root) for root in (home / JOBS).glob("[!.]*")]

    @property
    def folder(self) -> Path:
        """The folder of the finished training."""
        return self.root / "fit"

    @property
    def weights_file(self) -> Path:
        """The file of the final weights."""
        return self.folder / "weights.safetensors"

    @property
    def lock_path(self) -> Path:
        """The lock file, held by the process that trains."""
        return self.root / ".lock"

    @property
    def _incoming(self) -> Path:
        return self.root / ".fit.new"

    @property
    def _later(self) -> Path:
        return self.root / "later"

    @property
    def done(self) -> bool:
        """True if the artifact is published."""
        return (self.folder / MANIFEST).is_file()

    def manifest(self) -> TrainingRecord:
        """Return the record of the training.

        Raises:
            FileNotFoundError: If the training is not finished.
            CorruptFileError: If the manifest is damaged.
        """
        return read_manifest(self.folder, TrainingRecord, f"Remove {self.root}, and the next sweep trains it again.")

    def weights(self) -> dict[str, Tensor]:
        """Return the final weights, verified by their checksum. Raises CorruptFileError."""
        from workers.storage.tensor_folder import load_tensors

        return load_tensors(self.folder, "weights")

    def outputs(self) -> dict[str, Tensor]:
        """Return the outputs, verified by their checksum.

        Returns:
            keys (n,) int64 (`Store.keys`) of the *fuse* and *test* rows, and their logits (n, C) float32. For a full training
            also features (n, D) float32, and fit_ids and fit_contents (m,) int64 (`Store.id_keys`, `Store.content_keys`) of the
            rows that it was trained on. For a fold training also oof_keys and oof_logits of the rows that it left out and, for
            a frozen backbone, oof_features.

        Raises:
            CorruptFileError: If the file is damaged.
        """
        from workers.storage.tensor_folder import load_tensors

        return load_tensors(self.folder, "outputs")

    def later_outputs(self) -> dict[str, Tensor]:
        """Return the outputs on rows that came after the training; empty if there are none, or they are damaged."""
        from workers.storage.tensor_folder import load_tensors

        try:
            is_of_these = read_manifest(self._later, LaterRecord).weights_sha256 == self.manifest().weights_sha256
            return load_tensors(self._later, "outputs") if is_of_these else {}
        except (FileNotFoundError, CorruptFileError):
            return {}

    def keep_later_outputs(self, outputs: dict[str, Tensor]) -> None:
        """Write outputs on rows that came after the training, in the place of those that were kept before."""
        from workers.storage.tensor_folder import replace_folder, save_tensors

        with file_lock(self.lock_path):
            incoming = self.root / f".{self._later.name}.new"
            shutil.rmtree(incoming, ignore_errors=True)
            save_tensors(incoming, {"outputs": outputs}, LaterRecord(weights_sha256=self.manifest().weights_sha256))
            replace_folder(incoming, self._later)

    def publish(self, weights: dict[str, Tensor], outputs: dict[str, Tensor], record: TrainingRecord) -> None:
        """Write the artifact to a temporary folder, then rename that into place.

        Args:
            weights: The final weights.
            outputs: The outputs (see `outputs`).
            record: The record for the manifest.
        """
        from workers.storage.tensor_folder import replace_folder, save_tensors

        self.remove_incoming()
        save_tensors(self._incoming, {"weights": weights, "outputs": outputs}, record)
        fault_point("artifact.publish")
        replace_folder(self._incoming, self.folder)
        fault_point("artifact.published")

    def import_folder(self, folder: Path) -> None:
        """Import an artifact from a folder after verifying every file. Raises CorruptFileError."""
        from workers.storage.tensor_folder import replace_folder, verify_folder

        self.root.mkdir(parents=True, exist_ok=True)
        self.remove_incoming()
        shutil.copytree(folder, self._incoming)
        verify_folder(self._incoming, TrainingRecord)
        replace_folder(self._incoming, self.folder)

    def remove_incoming(self) -> None:
        """Remove files that a killed process left incomplete."""
        shutil.rmtree(self._incoming, ignore_errors=True)

    def delete(self) -> None:
        """Remove the artifact."""
        shutil.rmtree(self.folder, ignore_errors=True)
