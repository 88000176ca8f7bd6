"""A fit's tracking run, as its trainer sees it: everything goes to the spool; a background thread sends it.

Training never waits for the tracking store, and what could not be sent stays in the spool for `conclave sync`. It doesn't wait
for MLflow's import either, of two seconds: that thread makes it.
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

from workers import checkpoint
from workers.artifact import MemberArtifact
from workers.errors import Corrupt
from workers.job import Job
from workers.spool import Spool
from workers.watcher import Epoch

if TYPE_CHECKING:
    from workers.tracking import Tracking

LONGEST_PAUSE = 30.0
LEAVING = 60.0  # seconds for the last checkpoint of a fit that was told to stop; a spot machine has two minutes
DELIVERY = 1800.0  # seconds that a fit waits for a tracking store that has to have it
ON_THE_WAY = 60.0  # seconds that a fit made elsewhere may take to arrive


class Sender(threading.Thread):
    """Sends a spool in the background, with pauses that grow while the store is away."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(daemon=True, name="conclave-sender")
        self.spool = spool
        self.wake, self.ending = threading.Event(), threading.Event()
        self.failing = False
        self.upload: Callable[[], None] | None = None

    def run(self) -> None:
        from workers.delivery import deliver
        from workers.tracking import Tracking

        tracking, pause = Tracking(self.spool.uri), 0.5
        while True:
            try:
                deliver(self.spool, tracking)
                self.failing = False
                self._upload()
                pause = 0.5
                if self.ending.is_set() and not (self.upload or self.spool.unsent()):
                    return
                self.wake.wait(1.0)
                self.wake.clear()
            except Exception:  # whatever a network and a server can do: it stays in the spool
                self.failing = True
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _upload(self) -> None:
        """What was asked for, once; the last one again where the store did not take it, for nothing newer will come."""
        asked, self.upload = self.upload, None
        try:
            if asked:
                asked()
        except Exception:
            self.upload = asked if self.ending.is_set() else None
            raise

    def close(self, seconds: float, insist: bool = False) -> None:
        """Wait that long for the last entries, unless the store is away and nobody insists; then the thread is left to itself."""
        self.ending.set()
        self.wake.set()
        if insist or not self.failing:
            self.join(seconds)


class FitRun:
    """The tracking run of one job. `alone`: what was made has no other way to the driver than this run."""

    def __init__(self, job: Job, uri: str, run: str, alone: bool = False) -> None:
        self.job, self.uri, self.run, self.alone = job, uri, run, alone
        self.artifact = MemberArtifact.of(job.home, job.signature)
        self.spool = Spool.of(job.home, run, uri)
        self.known = self.spool.steps()
        self.sender = Sender(self.spool)
        self.uploaded, self.patience = time.monotonic(), 5.0
        self.sender.start()

    @cached_property
    def tracking(self) -> Tracking:
        from workers.tracking import Tracking

        return Tracking(self.uri)

    def fetch_teachers(self) -> None:
        """Take the fits that the job learns from, where another machine made them: they may still be on their way."""
        from workers.delivery import take

        for signature in self.job.teachers:
            artifact, until = MemberArtifact.of(self.job.home, signature), time.monotonic() + ON_THE_WAY
            while not artifact.done:
                run = self.tracking.finished_fit(self.tracking.experiment_of(self.run), signature)
                if take(artifact, self.tracking, run):
                    continue
                if time.monotonic() > until:
                    raise RuntimeError(
                        f"the fit {signature}, which this one learns from, is neither here nor in the tracking store"
                    )
                time.sleep(1)

    def fetch_checkpoint(self) -> None:
        """Take the checkpoints that the run has, where this machine has none of its own."""
        if self.artifact.done or self.artifact.checkpoint.exists() or not (self.known or self.uri.startswith("http")):
            return  # a store without a server has none that nothing was sent to from here
        found = self.tracking.fetch(self.run, "checkpoint")
        if found is None:
            return
        new = self.artifact.root / ".checkpoint.new"
        self.artifact.root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        for slot in found.iterdir():
            with contextlib.suppress(Corrupt, FileNotFoundError, FileExistsError, KeyError):  # a slot that was cut off
                record = checkpoint.verify(slot)
                shutil.copytree(slot, new / checkpoint.position(record["epoch"], record["step"]))
        if new.exists():
            new.rename(self.artifact.checkpoint)

    def resumed(self, history: list[Epoch]) -> None:
        """A fit that was killed between its checkpoint and its spool lacks a point here."""
        for epoch, metrics in enumerate(history):
            self._add(epoch, metrics)
        self.spool.status(self.run, "RUNNING", _now())

    def epoch(self, epoch: int, metrics: Epoch) -> None:
        self._add(epoch, metrics)
        self.sender.wake.set()

    def saved(self) -> None:
        """A checkpoint was written: it goes to the run too, in the background, where the last one is old."""
        if time.monotonic() - self.uploaded > self.job.checkpoint_seconds:
            self.uploaded = time.monotonic()
            self.sender.upload = self._upload
            self.sender.wake.set()

    def note(self, text: str) -> None:
        self.spool.tags(self.run, {"note": text, "mlflow.note.content": text})

    def done(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.resumed(manifest["history"])
        self.spool.artifact(self.run, folder, "fit")
        self.spool.forget_checkpoint(self.run)
        self.spool.metrics(self.run, {"train_seconds": float(manifest["train_seconds"])}, 0, int(manifest["history"][-1]["time"]))
        tags = {"state": "done", "weights_sha256": str(manifest["weights_sha256"]), "device": str(manifest["device"])}
        self.spool.tags(self.run, tags)
        self.spool.status(self.run, "FINISHED", _now())

    def left(self) -> None:
        """The fit wrote a checkpoint and leaves its machine, maybe for another one: that checkpoint goes to the run at once."""
        self.sender.upload = self._upload
        self.patience = LEAVING

    def close(self) -> None:
        self.sender.close(DELIVERY if self.alone else self.patience, self.alone)

    def _add(self, epoch: int, metrics: Epoch) -> None:
        """One point a step: an epoch that was trained before, and again after a crash, keeps its first."""
        if epoch + 1 not in self.known:
            self.known.add(epoch + 1)
            values = {k: v for k, v in metrics.items() if k != "time"}
            self.spool.metrics(self.run, values, epoch + 1, int(metrics["time"]))

    def _upload(self) -> None:
        """The newest checkpoint, into the older one of two slots, its manifest last: the other is whole all the while."""
        newest = max(self.artifact.checkpoint.glob("[0-9]*"), default=None)
        if newest is None:
            return
        slot = f"checkpoint/{min('ab', key=self._holds)}"
        self.tracking.forget(self.run, slot)
        for file in sorted(newest.iterdir(), key=lambda file: file.name == checkpoint.MANIFEST):
            self.tracking.artifact(self.run, file, slot)

    def _holds(self, slot: str) -> str:
        """The position of the checkpoint in a slot, whoever put it there; before all others where it has none."""
        found = self.tracking.fetch(self.run, f"checkpoint/{slot}/{checkpoint.MANIFEST}")
        try:
            record = checkpoint.record(found.parent) if found else None
        except Corrupt:
            record = None
        return checkpoint.position(record["epoch"], record["step"]) if record else ""


def _now() -> int:
    return round(time.time() * 1000)
