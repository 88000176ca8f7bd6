"""Track a job from its trainer: everything goes to outboxes, which a background thread sends.

Training never waits for the tracking store. Unsent entries stay in the outboxes for `conclave sync`. The thread also imports
MLflow, which takes two seconds.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from workers.config.job import Job, JobMember
from workers.diagnostics.callback import Epoch
from workers.diagnostics.waiting import retry_while, wait_until
from workers.errors import CorruptFileError, IncompleteTransferError, StoreUnavailableError
from workers.storage.artifacts import MemberArtifact
from workers.storage.checkpoint_record import CheckpointRecord
from workers.storage.checkpoints import checkpoint_name
from workers.storage.manifest import MANIFEST, read_manifest
from workers.storage.tensor_folder import verify_folder
from workers.storage.training_folder import TrainingFolder
from workers.tracking.entries import now_ms
from workers.tracking.outbox import Outbox

if TYPE_CHECKING:
    from workers.tracking.client import TrackingClient

LONGEST_PAUSE_SECONDS = 30.0
LARGEST_SHARE = 0.005  # largest share of the time for sending during a training, which uses the same core
MOST_BEHIND_SECONDS = 5.0  # longest pause between two sends for that reason
RETRY_SECONDS = 60.0  # how long a store that does not answer is asked again for a checkpoint
PATIENCE_SECONDS = 5.0  # wait for the last entries of a job
LEAVING_SECONDS = 60.0  # wait for the last checkpoint of a stopped job; a spot machine has two minutes
DELIVERY_SECONDS = 1800.0  # wait for the tracking store if it must have everything
ARRIVAL_SECONDS = 60.0  # wait for a training that another machine made
TEACHER_MISSING = "the teacher's training {} is neither on this machine nor in the tracking store. Run the sweep again."


class Sender(threading.Thread):
    """Sends outboxes in the background, with exponential backoff while the store is unreachable.

    Batches the metrics of several epochs if epochs end faster than they can be sent at little cost.
    """

    def __init__(self, outboxes: Sequence[Outbox]) -> None:
        super().__init__(daemon=True, name="conclave-sender")
        self.outboxes = outboxes
        self.wake, self.ending = threading.Event(), threading.Event()
        self.is_failing = False
        self.upload: Callable[[], None] | None = None

    def run(self) -> None:
        """Send until `close` was called and everything is sent."""
        from workers.tracking.client import TrackingClient
        from workers.tracking.delivery import flush_outbox

        tracking, pause = TrackingClient(self.outboxes[0].uri), 0.5
        while True:
            began = time.monotonic()
            try:
                for outbox in self.outboxes:
                    flush_outbox(outbox, tracking)
                self.is_failing = False
                self._upload()
                pause = 0.5
                if self.ending.is_set() and not (self.upload or any(outbox.unsent() for outbox in self.outboxes)):
                    return
                self.ending.wait(min((time.monotonic() - began) / LARGEST_SHARE, MOST_BEHIND_SECONDS))
                self.wake.wait(1.0)
                self.wake.clear()
            except Exception:  # any failure of a network or a server: entries stay in the outboxes
                self.is_failing = True
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _upload(self) -> None:
        """Run the pending upload once. After `close`, retry a failed upload, because no newer one will follow."""
        upload, self.upload = self.upload, None
        try:
            if upload:
                upload()
        except Exception:
            self.upload = upload if self.ending.is_set() else None
            raise

    def close(self, seconds: float, insist: bool = False) -> None:
        """Wait for the last entries.

        Args:
            seconds: How long to wait.
            insist: Whether to wait even if the store is unreachable. Otherwise the thread is then abandoned.
        """
        self.ending.set()
        self.wake.set()
        if insist or not self.is_failing:
            self.join(seconds)


class MemberRun:
    """The tracking run of one member of a job.

    Args:
        job: The job.
        member: The member.
        run: The run's id.
        uri: The tracking store.
    """

    def __init__(self, job: Job, member: JobMember, run: str, uri: str) -> None:
        self.member, self.run, self.last_epoch = member, run, job.last_epoch(member)
        self.outbox = Outbox.open(job.home, run, uri)
        self.known_steps = self.outbox.steps()

    def start(self, history: Sequence[Epoch]) -> None:
        """Start the run, adding the point missing if a job was killed between its checkpoint and its outbox."""
        for epoch, metrics in enumerate(history):
            self.add_epoch(epoch, metrics)
        self.outbox.status(self.run, "RUNNING", now_ms())

    def add_epoch(self, epoch: int, metrics: Epoch) -> None:
        """Add the metrics of an epoch, unless it has some: an epoch trained again after a crash keeps its first.

        Epochs after the end of a snapshot are ignored.
        """
        if epoch + 1 not in self.known_steps and epoch < self.last_epoch:
            self.known_steps.add(epoch + 1)
            values = {k: v for k, v in metrics.items() if k != "time"}
            self.outbox.metrics(self.run, values, epoch + 1, int(metrics["time"]))

    def finish(self, artifact: MemberArtifact) -> None:
        """Add a published member's metrics, artifact, tags and final status."""
        record = artifact.manifest()
        self.start(record.history)
        self.outbox.artifact(self.run, artifact.folder, "fit")
        self.outbox.metrics(self.run, {"train_seconds": record.train_seconds}, 0, record.finished_ms)
        self.outbox.tags(self.run, {"weights_sha256": record.weights_sha256, "device": record.device})
        self.outbox.status(self.run, "FINISHED", now_ms(), {"state": "done"})


class JobRun:
    """The tracking runs of one job. Its checkpoints go to the run of its first member.

    Args:
        job: The job.
        uri: The tracking store.
        runs: Run ids of the job's members, in member order.
        is_isolated: Whether the job's artifacts can reach the driver only through these runs.
    """

    def __init__(self, job: Job, uri: str, runs: Sequence[str], is_isolated: bool = False) -> None:
        self.job, self.uri, self.is_isolated = job, uri, is_isolated
        self.folder = TrainingFolder.of(job)
        self.members = [MemberRun(job, member, run, uri) for member, run in zip(job.members, runs, strict=True)]
        self.published: set[str] = set()
        self.sender = Sender([member.outbox for member in self.members])
        self.uploaded_at, self.patience_seconds = time.monotonic(), PATIENCE_SECONDS
        self.sender.start()

    @property
    def run(self) -> str:
        """Id of the run that keeps the checkpoints."""
        return self.members[0].run

    @cached_property
    def tracking(self) -> TrackingClient:
        """The tracking store."""
        from workers.tracking.client import TrackingClient

        return TrackingClient(self.uri)

    def download_teachers(self) -> None:
        """Download teacher trainings that other machines made, waiting for those still being uploaded.

        Raises:
            IncompleteTransferError: If a teacher's training does not arrive in time.
        """
        for signature in self.job.teachers:
            if not wait_until(partial(self._download_teacher, signature), ARRIVAL_SECONDS, 1.0):
                raise IncompleteTransferError(TEACHER_MISSING.format(signature))

    def _download_teacher(self, signature: str) -> bool:
        """Return whether a training is on this machine, downloading it if needed."""
        from workers.tracking.delivery import download_training

        artifact = MemberArtifact.in_home(self.job.home, signature)
        if artifact.done:
            return True
        try:
            run = self.tracking.find_training(self.tracking.experiment_of(self.run), signature)
            return download_training(artifact, self.tracking, run)
        except StoreUnavailableError:
            return False

    def download_checkpoint(self) -> None:
        """Download the job's checkpoints if this machine has none.

        Raises:
            StoreUnavailableError: If the store does not answer for RETRY_SECONDS, and only it can have checkpoints. Starting anew
                would lose the work.
        """
        has_checkpoint = self.folder.done or self.folder.checkpoint.exists()
        if has_checkpoint or not (self.members[0].known_steps or self.uri.startswith("http")):
            return  # a store without a server has no checkpoints unless this machine sent some
        incoming = self.folder.incoming_checkpoint
        shutil.rmtree(incoming, ignore_errors=True)
        with tempfile.TemporaryDirectory() as work:
            try:
                seconds = RETRY_SECONDS if self.is_isolated else 0.0
                folder = retry_while(
                    StoreUnavailableError, lambda: self.tracking.download(self.run, "checkpoint", Path(work)), seconds
                )
            except StoreUnavailableError:
                if self.is_isolated:
                    raise
                return  # the home itself has the checkpoints of the machines that share it
            for slot in folder.iterdir() if folder else ():
                self.folder.root.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(CorruptFileError, FileNotFoundError, FileExistsError):  # a truncated checkpoint
                    record = verify_folder(slot, CheckpointRecord)
                    shutil.copytree(slot, incoming / checkpoint_name(*record.position))
        if incoming.exists():
            incoming.rename(self.folder.checkpoint)

    def on_resume(self, history: Sequence[Epoch]) -> None:
        """Start the runs of the missing members."""
        for run in self._unpublished():
            run.start(history)

    def on_epoch_end(self, epoch: int, metrics: Epoch) -> None:
        """Add the metrics of an epoch."""
        for run in self._unpublished():
            run.add_epoch(epoch, metrics)
        self.sender.wake.set()

    def on_checkpoint(self) -> None:
        """Upload the checkpoint in the background, if the last upload is old enough."""
        if time.monotonic() - self.uploaded_at > self.job.checkpoint_seconds:
            self.uploaded_at = time.monotonic()
            self.sender.upload = self._upload
            self.sender.wake.set()

    def note(self, text: str) -> None:
        """Show a note on the runs' pages."""
        for run in self.members:
            run.outbox.tags(run.run, {"note": text, "mlflow.note.content": text})

    def on_published(self, member: JobMember, artifact: MemberArtifact) -> None:
        """Add a published member to its run. After the last member, delete the checkpoints."""
        next(run for run in self.members if run.member == member).finish(artifact)
        self.published.add(member.name)
        if not self._unpublished():
            self.members[0].outbox.delete_checkpoint(self.run)
        self.sender.wake.set()

    def leave(self) -> None:
        """Upload the checkpoint at once: the job leaves this machine, and may resume on another one."""
        self.sender.upload = self._upload
        self.patience_seconds = LEAVING_SECONDS

    def close(self) -> None:
        """Wait for the last entries to be sent."""
        self.sender.close(DELIVERY_SECONDS if self.is_isolated else self.patience_seconds, self.is_isolated)

    def _unpublished(self) -> list[MemberRun]:
        return [run for run in self.members if run.member.name not in self.published]

    def _upload(self) -> None:
        """Upload the newest checkpoint to the older of two slots, manifest last, so that one slot is always complete."""
        newest = max(self.folder.checkpoint.glob("[0-9]*"), default=None)
        if newest is None:
            return
        slot = f"checkpoint/{min('ab', key=self._slot_position)}"
        self.tracking.delete_artifacts(self.run, slot)
        for file in sorted(newest.iterdir(), key=lambda file: file.name == MANIFEST):
            self.tracking.log_artifact(self.run, file, slot)

    def _slot_position(self, slot: str) -> str:
        """Return the name of the checkpoint in a slot; "" for an empty slot, which sorts before all others."""
        with tempfile.TemporaryDirectory() as work:
            path = self.tracking.download(self.run, f"checkpoint/{slot}/{MANIFEST}", Path(work))
            try:
                record = read_manifest(path.parent, CheckpointRecord) if path else None
            except CorruptFileError:
                record = None
        return checkpoint_name(*record.position) if record else ""
