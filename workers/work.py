"""Do one job and tell whoever follows it: its tracking run, and the live table by way of `Progress`."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workers import faults
from workers.artifact import MemberArtifact
from workers.errors import ConclaveError, Stopped
from workers.job import Job
from workers.watcher import Epoch, Watcher

if TYPE_CHECKING:
    import torch

    from workers.fitrun import FitRun
    from workers.group import Group


@dataclass(frozen=True)
class Life:
    """A trainer's sign of life. `waiting`: its job is done by several processes, for which there is no machine yet."""

    pid: int
    node: str
    epoch: int
    metrics: dict[str, float]
    notes: list[str]
    steps: int
    waiting: bool = False


@dataclass
class Progress(Watcher):
    """What the live table shows of a running fit, and the way to ask it to stop. Tells the tracking run too."""

    run: FitRun | None = None
    epoch_: int = 0
    metrics: Epoch = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: int = 0
    stop: bool = False

    def resumed(self, history: list[Epoch]) -> None:
        if history:
            self.epoch_, self.metrics = len(history), history[-1]
        if self.run:
            self.run.resumed(history)

    def epoch(self, epoch: int, metrics: Epoch) -> None:
        self.epoch_, self.metrics = epoch + 1, metrics
        if self.run:
            self.run.epoch(epoch, metrics)

    def step(self) -> None:
        self.steps += 1

    def saved(self) -> None:
        if self.run:
            self.run.saved()

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.run:
            self.run.note(text)

    def stop_asked(self) -> bool:
        return self.stop


def work(
    job: Job,
    uri: str | None,
    run: str | None,
    progress: Progress,
    note: str = "",
    alone: bool = False,
    device: torch.device | None = None,
    group: Group | None = None,
) -> dict[str, Any]:
    """Do one job and tell its tracking run, with a note to begin with. Gives the manifest; {"error", "kind"} where the
    member itself failed. `alone`: on a disk that nobody else sees, so that the run has to have it all before this ends."""
    from workers import member
    from workers.fitrun import FitRun

    faults.subject(job.label)
    artifact = MemberArtifact.of(job.home, job.signature)
    told = FitRun(job, uri, run, alone) if uri and run else None
    progress.run = told
    if note:
        progress.note(note)
    try:
        if told:
            told.fetch_teachers()
            told.fetch_checkpoint()
        manifest = member.run(job, progress, device, group)
        if told:
            told.done(artifact.folder, manifest)
        return manifest
    except ConclaveError as error:
        if told and isinstance(error, Stopped):
            told.left()
        return {"error": str(error), "kind": type(error).__name__}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "kind": "error", "trace": traceback.format_exc()}
    finally:
        if told:
            told.close()
