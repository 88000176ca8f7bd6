"""Do one job and tell whoever follows it: its tracking run, and the live table by way of `Progress`."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any

from workers.artifact import MemberArtifact
from workers.errors import ConclaveError
from workers.spec import Job


@dataclass
class Progress:
    """What the live table shows of a running fit. Passed to the tracking run as well."""

    run: Any
    epoch_: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.epoch_, self.metrics = epoch + 1, metrics
        if self.run:
            self.run.epoch(epoch, metrics)

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.run:
            self.run.note(text)


def work(job: Job, uri: str | None, run: str | None, progress: Progress) -> dict[str, Any]:
    """Do one job and tell its tracking run. Gives the manifest; {"error", "kind"} where the member itself failed."""
    from workers import member
    from workers.tracking import FitRun

    artifact = MemberArtifact.of(job.home, job.signature)
    progress.run = FitRun(uri, run, artifact.checkpoint) if uri and run else None
    try:
        manifest = member.run(job, progress)
    except ConclaveError as error:
        if progress.run:
            progress.run.failed(str(error))
        return {"error": str(error), "kind": type(error).__name__}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "kind": "error", "trace": traceback.format_exc()}
    if progress.run:
        progress.run.done(artifact.folder, manifest)
    return manifest
