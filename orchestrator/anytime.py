"""While others still train: the fusions that need nothing but the members that are done, shown as each is done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.launch import Event, Watch
from orchestrator.plan import Plan
from workers.artifact import MemberArtifact
from workers.errors import ConclaveError

if TYPE_CHECKING:
    from pathlib import Path

FUSIONS = ("vote", "weighted")


@dataclass
class Anytime:
    """Follows a sweep's events in place of `watch`, which it hands them on to. Scores are on *fuse*: *test* waits."""

    todo: Plan
    watch: Watch
    say: Callable[[str], None]
    told: int = 1  # members of the last line
    thread: threading.Thread | None = field(default=None, repr=False)

    def __call__(self, event: Event) -> None:
        self.watch(event)
        if event.kind == "done" and event.job.fold is None and not event.job.teachers:
            done = self._done()
            if self.told < len(done) < len(self.todo.team.members) and not (self.thread and self.thread.is_alive()):
                self.told = len(done)
                self.thread = threading.Thread(target=self._tell, args=(done,), daemon=True, name="conclave-anytime")
                self.thread.start()

    def close(self) -> None:
        """Wait for a line that is being worked out, so that it does not come after the end."""
        if self.thread:
            self.thread.join()

    def _done(self) -> dict[str, Path]:
        artifacts = {
            j.member.name: MemberArtifact.of(j.home, j.signature) for j in self.todo.jobs if j.fold is None and not j.teachers
        }
        return {name: artifact.root for name, artifact in artifacts.items() if artifact.done}

    def _tell(self, done: dict[str, Path]) -> None:
        """Off the supervisor's thread: it must not wait for this."""
        import numpy as np

        from fusion.fit import best_single, fit_all
        from fusion.outputs import gather
        from fusion.score import scores

        store = self.todo.store
        nothing = np.zeros(0, dtype=np.int64)
        try:
            gathered = gather(done, {}, store.classes, np.asarray(store.labels), nothing, nothing)
        except ConclaveError:
            return  # a damaged artifact is told by the fusion step, which can't do without it
        fitted = fit_all(gathered, FUSIONS)
        single = best_single(gathered, fitted)
        labels = gathered.evidence.fuse.labels
        found = ", ".join(f"{name} {scores(fitted[name].nested, labels)['accuracy']:.2%}" for name in (single, *FUSIONS))
        self.say(f"so far, with {len(done)} of {len(self.todo.team.members)} members, on fuse: {found}")
