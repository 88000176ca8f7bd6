"""A job's tracking run, as its trainer sees it: everything goes to the outbox, and a background thread sends it.

Training never waits for the tracking store. What could not be sent stays in the outbox for `conclave sync`. Training does not
wait for MLflow's import of two seconds either: the thread makes it.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.config.job import Job
from workers.diagnostics.callback import Epoch
from workers.errors import CorruptFileError
from workers.storage.artifacts import MemberArtifact
from workers.storage.checkpoints import checkpoint_name
from workers.storage.manifest import MANIFEST, read_manifest
from workers.storage.tensor_folder import verify_folder
from workers.tracking.outbox import Outbox

if TYPE_CHECKING:
    from workers.tracking.client import TrackingClient

LONGEST_PAUSE_SECONDS = 30.0
PATIENCE_SECONDS = 5.0  # for the last entries of a job
LEAVING_SECONDS = 60.0  # for the last checkpoint of a job that was told to stop; a spot machine has two minutes
DELIVERY_SECONDS = 1800.0  # that a job waits for a tracking store that must have everything
ARRIVAL_SECONDS = 60.0  # that a training which was made elsewhere may take to arrive
TEACHER_MISSING = "the training {}, which this one learns from, is neither here nor in the tracking store"


class Sender(threading.Thread):
    """Sends an outbox in the background, with pauses that grow while the store is away."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(daemon=True, name="conclave-sender")
        self.outbox = outbox
        self.wake, self.ending = threading.Event(), threading.Event()
        self.is_failing = False
        self.upload: Callable[[], None] | None = None

    def run(self) -> None:
        """Send until `close` was called and everything is sent."""
        from workers.tracking.client import TrackingClient
        from workers.tracking.delivery import flush_outbox

        tracking, pause = TrackingClient(self.outbox.uri), 0.5
        while True:
            try:
                flush_outbox(self.outbox, tracking)
                self.is_failing = False
                self._upload()
                pause = 0.5
                if self.ending.is_set() and not (self.upload or self.outbox.unsent()):
                    return
                self.wake.wait(1.0)
                self.wake.clear()
            except Exception:  # whatever a network and a server can do: it stays in the outbox
                self.is_failing = True
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _upload(self) -> None:
        """Run the pending upload once; the last one again where the store did not take it, for nothing newer will come."""
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
            insist: Whether to wait even though the store is away. Else the thread is left to itself then.
        """
        self.ending.set()
        self.wake.set()
        if insist or not self.is_failing:
            self.join(seconds)


class JobRun:
    """The tracking run of one job.

    Args:
        job: The job.
        uri: The tracking store.
        run: The run's id.
        is_isolated: Whether what the job makes has no other way to the driver than this run.
    """

    def __init__(self, job: Job, uri: str, run: str, is_isolated: bool = False) -> None:
        self.job, self.uri, self.run, self.is_isolated = job, uri, run, is_isolated
        self.artifact = MemberArtifact.in_home(job.home, job.signature)
        self.outbox = Outbox.open(job.home, run, uri)
        self.known_steps = self.outbox.steps()
        self.sender = Sender(self.outbox)
        self.uploaded_at, self.patience_seconds = time.monotonic(), PATIENCE_SECONDS
        self.sender.start()

    @cached_property
    def tracking(self) -> TrackingClient:
        """The tracking store."""
        from workers.tracking.client import TrackingClient

        return TrackingClient(self.uri)

    def download_teachers(self) -> None:
        """Download the trainings that the job learns from, where another machine made them: they may be on their way still.

        Raises:
            RuntimeError: If one does not arrive in time.
        """
        from workers.tracking.delivery import download_training

        for signature in self.job.teachers:
            artifact, until = MemberArtifact.in_home(self.job.home, signature), time.monotonic() + ARRIVAL_SECONDS
            while not artifact.done:
                run = self.tracking.find_training(self.tracking.experiment_of(self.run), signature)
                if download_training(artifact, self.tracking, run):
                    continue
                if time.monotonic() > until:
                    raise RuntimeError(TEACHER_MISSING.format(signature))
                time.sleep(1)

    def download_checkpoint(self) -> None:
        """Download the checkpoints of the run, where this machine has none of its own."""
        has_checkpoint = self.artifact.done or self.artifact.checkpoint.exists()
        if has_checkpoint or not (self.known_steps or self.uri.startswith("http")):
            return  # a store without a server has none if nothing was sent to it from here
        folder = self.tracking.download(self.run, "checkpoint")
        if folder is None:
            return
        incoming = self.artifact.incoming_checkpoint
        self.artifact.root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(incoming, ignore_errors=True)
        for slot in folder.iterdir():
            with contextlib.suppress(CorruptFileError, FileNotFoundError, FileExistsError, KeyError):  # one that was cut off
                record = verify_folder(slot)
                shutil.copytree(slot, incoming / checkpoint_name(record["epoch"], record["step"]))
        if incoming.exists():
            incoming.rename(self.artifact.checkpoint)

    def on_resume(self, history: list[Epoch]) -> None:
        """Start the run. A job that was killed between its checkpoint and its outbox lacks a point, which is added here."""
        for epoch, metrics in enumerate(history):
            self._add_epoch(epoch, metrics)
        self.outbox.status(self.run, "RUNNING", _now_ms())

    def on_epoch_end(self, epoch: int, metrics: Epoch) -> None:
        """Add the metrics of an epoch."""
        self._add_epoch(epoch, metrics)
        self.sender.wake.set()

    def on_checkpoint(self) -> None:
        """Upload the checkpoint in the background, where the last upload is long ago."""
        if time.monotonic() - self.uploaded_at > self.job.checkpoint_seconds:
            self.uploaded_at = time.monotonic()
            self.sender.upload = self._upload
            self.sender.wake.set()

    def note(self, text: str) -> None:
        """Show a note on the run's page."""
        self.outbox.tags(self.run, {"note": text, "mlflow.note.content": text})

    def finish(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Add everything of a finished training: its metrics, its artifact, its tags and its status."""
        self.on_resume(manifest["history"])
        self.outbox.artifact(self.run, folder, "fit")
        self.outbox.delete_checkpoint(self.run)
        last_ms = int(manifest["history"][-1]["time"])
        self.outbox.metrics(self.run, {"train_seconds": float(manifest["train_seconds"])}, 0, last_ms)
        tags = {"state": "done", "weights_sha256": str(manifest["weights_sha256"]), "device": str(manifest["device"])}
        self.outbox.tags(self.run, tags)
        self.outbox.status(self.run, "FINISHED", _now_ms())

    def leave(self) -> None:
        """Upload the checkpoint at once: the job leaves its machine, and may go on at another one."""
        self.sender.upload = self._upload
        self.patience_seconds = LEAVING_SECONDS

    def close(self) -> None:
        """Wait for the last entries to be sent."""
        self.sender.close(DELIVERY_SECONDS if self.is_isolated else self.patience_seconds, self.is_isolated)

    def _add_epoch(self, epoch: int, metrics: Epoch) -> None:
        """Add one point per step: an epoch that was trained before, and again after a crash, keeps its first."""
        if epoch + 1 not in self.known_steps:
            self.known_steps.add(epoch + 1)
            values = {k: v for k, v in metrics.items() if k != "time"}
            self.outbox.metrics(self.run, values, epoch + 1, int(metrics["time"]))

    def _upload(self) -> None:
        """Upload the newest checkpoint into the older of two slots, its manifest last: the other slot stays whole meanwhile."""
        newest = max(self.artifact.checkpoint.glob("[0-9]*"), default=None)
        if newest is None:
            return
        slot = f"checkpoint/{min('ab', key=self._slot_position)}"
        self.tracking.delete_artifacts(self.run, slot)
        for file in sorted(newest.iterdir(), key=lambda file: file.name == MANIFEST):
            self.tracking.log_artifact(self.run, file, slot)

    def _slot_position(self, slot: str) -> str:
        """Return the name of the checkpoint in a slot, whoever put it there; an empty slot's sorts before all others."""
        path = self.tracking.download(self.run, f"checkpoint/{slot}/{MANIFEST}")
        try:
            record = read_manifest(path.parent) if path else None
        except CorruptFileError:
            record = None
        return checkpoint_name(record["epoch"], record["step"]) if record else ""


def _now_ms() -> int:
    return round(time.time() * 1000)
