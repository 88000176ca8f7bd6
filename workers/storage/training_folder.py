"""The files of a training that is under way: its checkpoints, and the locks of the artifacts that it will publish.

HOME/jobs/SIGNATURE/checkpoint/EPOCH-STEP/   the last two checkpoints, beside the artifact of its first member
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
UNFINISHED_CHECKPOINT = ".new"  # in the folder of checkpoints: one that is being written


@dataclass(frozen=True)
class TrainingFolder:
    """The folder of one training.

    Attributes:
        artifacts: The artifacts that it publishes, in the order in which it makes them.
    """

    artifacts: tuple[MemberArtifact, ...]

    @classmethod
    def of(cls, job: Job) -> TrainingFolder:
        """Return the folder of a job's training, whether it is there or not."""
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
        """Where checkpoints from a tracking run are put together."""
        return self.root / ".checkpoint.new"

    @property
    def done(self) -> bool:
        """True if everything is published."""
        return all(artifact.done for artifact in self.artifacts)

    @contextlib.contextmanager
    def locked(self, callback: TrainingCallback) -> Iterator[None]:
        """Let only one process train this at a time. A dead process's lock is free. Raises TrainingStopped if told to stop."""
        with contextlib.ExitStack() as locks:
            # All processes take the locks in one order: so none waits for another in a ring.
            for artifact in sorted(self.artifacts, key=lambda artifact: artifact.root):
                artifact.root.mkdir(parents=True, exist_ok=True)
                locks.enter_context(_waited_for(artifact, callback))
            self._clear()
            yield

    def remove_leftovers(self) -> None:
        """Remove what a killed process left here, unless another process is at work."""
        with contextlib.suppress(Timeout), contextlib.ExitStack() as locks:
            for artifact in self.artifacts:
                if artifact.root.is_dir():
                    locks.enter_context(file_lock(artifact.lock_path, timeout=0))
            self._clear()

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def delete(self) -> None:
        """Remove the artifacts and the checkpoints."""
        for artifact in self.artifacts:
            artifact.delete()
        self.remove_checkpoints()

    def _clear(self) -> None:
        for artifact in self.artifacts:
            artifact.remove_incoming()
        shutil.rmtree(self.incoming_checkpoint, ignore_errors=True)
        shutil.rmtree(self.checkpoint / UNFINISHED_CHECKPOINT, ignore_errors=True)
        if self.done:
            self.remove_checkpoints()


@contextlib.contextmanager
def _waited_for(artifact: MemberArtifact, callback: TrainingCallback) -> Iterator[None]:
    lock = file_lock(artifact.lock_path)
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
        yield
    finally:
        lock.release()
