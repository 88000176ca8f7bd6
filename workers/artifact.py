"""Where a job keeps what it makes, and how it is read back: owns every path and file name of a fit.

HOME/jobs/SIGNATURE/checkpoint/EPOCH-STEP/   the last two, while it runs
HOME/jobs/SIGNATURE/last/                    the last checkpoint of a cycle that another one goes on from
HOME/jobs/SIGNATURE/fit/                     weights.safetensors, outputs.safetensors, manifest.json (written last)
HOME/jobs/SIGNATURE/.lock                    held by the process that makes it
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from workers.errors import ConclaveError, Stopped
from workers.faults import reach

if TYPE_CHECKING:
    from torch import Tensor

    from workers.watcher import Watcher

MANIFEST = "manifest.json"


def class_order(theirs: Sequence[str], ours: Sequence[str], name: str) -> list[int]:
    """Where each of our classes stands among a member's. Raises ConclaveError where they are not the same classes."""
    if sorted(theirs) != sorted(ours):
        raise ConclaveError(f"member {name} knows other classes than the data: {', '.join(theirs)}; it can't be fused.")
    return [list(theirs).index(c) for c in ours]


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
    def last(self) -> Path:
        return self.root / "last"

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

    @contextlib.contextmanager
    def held(self, watcher: Watcher) -> Iterator[None]:
        """Only one process makes this fit at a time; a dead holder's lock is free. Raises Stopped."""
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock")
        waited = False
        while True:
            try:
                lock.acquire(timeout=1)
                break
            except Timeout:
                if watcher.stop_asked():
                    raise Stopped("stopped while another process trains the same fit") from None
                if not waited:
                    watcher.note("another process trains the same fit: waiting for it")
                waited = True
                watcher.step()
        try:
            self._clear()
            yield
        finally:
            lock.release()

    def tidy(self) -> None:
        """Remove what a killed process left here, unless another one is at work."""
        if self.root.is_dir():
            with contextlib.suppress(Timeout), FileLock(self.root / ".lock", timeout=0):
                self._clear()

    def _clear(self) -> None:
        for name in (".fit.new", ".checkpoint.new", "checkpoint/.new", *(["checkpoint"] if self.done else [])):
            shutil.rmtree(self.root / name, ignore_errors=True)

    def publish(self, weights: dict[str, Tensor], outputs: dict[str, Tensor], record: dict[str, Any], keep: bool = False) -> None:
        """Make the fit done: complete in a folder beside it, then renamed into place. `keep` its last checkpoint."""
        from workers import checkpoint

        new = self.root / ".fit.new"
        shutil.rmtree(new, ignore_errors=True)
        checkpoint.save(new, {"weights": weights, "outputs": outputs}, record)
        reach("artifact.publish")
        if keep and self.checkpoint.exists():
            self.drop_last()
            shutil.copytree(self.checkpoint, self.last)
        checkpoint.replace(new, self.folder)
        reach("artifact.published")
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def drop_last(self) -> None:
        """Nobody goes on from here any more."""
        shutil.rmtree(self.last, ignore_errors=True)

    def adopt(self, folder: Path) -> None:
        """Take a finished fit that was made elsewhere, if every file is whole. Raises Corrupt."""
        from workers import checkpoint

        self.root.mkdir(parents=True, exist_ok=True)
        new = self.root / ".fit.new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(folder, new)
        checkpoint.verify(new)
        checkpoint.replace(new, self.folder)

    def forget(self) -> None:
        """Remove everything of this fit, its checkpoints too."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        self.drop_last()
