"""Where a job keeps what it makes, and how it is read back: owns every path and file name of a fit.

HOME/jobs/SIGNATURE/checkpoint/      while it runs
HOME/jobs/SIGNATURE/fit/             weights.safetensors, outputs.safetensors, manifest.json (written last)
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class MemberArtifact:
    """One fit's artifact below `root`: HOME/jobs/SIGNATURE, or a run's artifacts. Reading the manifest needs no torch."""

    root: Path

    @classmethod
    def of(cls, home: Path, signature: str) -> MemberArtifact:
        return cls(home / "jobs" / signature)

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def folder(self) -> Path:
        return self.root / "fit"

    @property
    def done(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    def manifest(self) -> dict[str, Any]:
        """Member, fold, seed, seconds, history, records, checksums. Raises FileNotFoundError."""
        content = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        assert isinstance(content, dict)
        return content

    def weights(self) -> dict[str, Tensor]:
        """The final weights, checksum verified. Raises Corrupt."""
        from workers import checkpoint

        return checkpoint.load(self.folder, "weights")

    def outputs(self) -> dict[str, Tensor]:
        """`rows` and float32 logits and features: fuse_*, test_* of a full fit, oof_* of a fold fit."""
        from workers import checkpoint

        return checkpoint.load(self.folder, "outputs")

    def publish(self, weights: dict[str, Tensor], outputs: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Make the fit done: complete in a folder beside it, then renamed into place."""
        from workers import checkpoint

        new = self.root / ".fit.new"
        shutil.rmtree(new, ignore_errors=True)
        checkpoint.save(new, {"weights": weights, "outputs": outputs}, record)
        checkpoint.replace(new, self.folder)
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def adopt(self, folder: Path) -> None:
        """Take a finished fit that was made elsewhere."""
        from workers import checkpoint

        new = self.root / ".fit.new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(folder, new)
        checkpoint.replace(new, self.folder)
