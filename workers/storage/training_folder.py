"""The files of a running training: its checkpoints, and the locks of the artifacts that it will publish.

HOME/jobs/SIGNATURE/checkpoint/EPOCH-STEP/   the last two checkpoints, next to the artifact of the first member
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from workers.config.job import Job
from workers.diagnostics.callback import TrainingCallback
from workers.errors import TrainingStopped
from workers.storage.artifacts import MemberArtifact
from workers.storage.files import file_lock

CHECKPOINT = "checkpoint"
SAME_TRAINING = "another process runs the same training"
UNFINISHED_CHECKPOINT = ".new"  # name of the checkpoint being written, in the folder of checkpoints


@dataclass(frozen=True)
class TrainingFolder:
    """The folder of one training.

    Attributes:
        artifacts: The artifacts that it publishes, in the order in which it makes them.
    """

    artifacts: tuple[MemberArtifact, ...]

    @classmethod
    def of(cls, job: Job) -> TrainingFolder:
        """Return the folder of a job's training, which need not exist."""
        return cls(tuple(MemberArtifact.in_home(job.home, signature) for signature in job.signatures))

    @property
    def root(self) -> Path:
        """The folder of the first artifact."""
        return self.artifacts[0].root

    @property
    def checkpoint(self) -> Path:
        """The folder of checkpoints."""
        return self.root / CHECKPOINT

    @property
    def incoming_checkpoint(self) -> Path:
        """Temporary folder for checkpoints that are downloaded from a tracking run."""
        return self.root / ".checkpoint.new"

    @property
    def done(self) -> bool:
        """True if everything is published."""
        return all(artifact.done for artifact in self.artifacts)

    @contextlib.contextmanager
    def locked(self, callback: TrainingCallback) -> Iterator[None]:
        """Hold the training's locks; a dead process holds none. Raises TrainingStopped if stopped while waiting."""
        with contextlib.ExitStack() as locks:
            # All processes take the locks in the same order, which rules out deadlocks.
            for artifact in sorted(self.artifacts, key=lambda artifact: artifact.root):
                artifact.root.mkdir(parents=True, exist_ok=True)
                locks.enter_context(wait_for_lock(artifact.lock_path, callback, SAME_TRAINING))
            self._clear()
            yield

    def remove_leftovers(self) -> None:
        """Remove files that a killed process left, unless another process is training."""
        with contextlib.suppress(Timeout), contextlib.ExitStack() as locks:
            for artifact in self.artifacts:
                if artifact.root.is_dir():
                    locks.enter_context(file_lock(artifact.lock_path, timeout=0))
            self._clear()

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def _clear(self) -> None:
        for artifact in self.artifacts:
            artifact.remove_incoming()
        shutil.rmtree(self.incoming_checkpoint, ignore_errors=True)
        shutil.rmtree(self.checkpoint / UNFINISHED_CHECKPOINT, ignore_errors=True)
        if self.done:
            self.remove_checkpoints()


def wait_for_lock(path: Path, callback: TrainingCallback, reason: str) -> contextlib.AbstractContextManager[object]:
    """Wait for a lock that another training may hold. Return a context that releases it.

    Args:
        path: The lock's file.
        callback: Follows the training; may ask for a stop.
        reason: What the training waits for.

    Raises:
        TrainingStopped: If asked to stop.
    """
    lock, has_waited = file_lock(path), False
    while True:
        with contextlib.suppress(Timeout):
            return lock.acquire(timeout=1)
        if callback.should_stop():
            raise TrainingStopped(f"stopped while {reason}")
        if not has_waited:
            callback.note(f"{reason}: waiting for it")
        has_waited = True
        callback.on_step_end()
