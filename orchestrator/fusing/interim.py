"""Report interim fusions while members still train: those that need nothing but the members that are done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.execution.executor import Event, OnEvent
from orchestrator.planning.plan import Plan
from workers.errors import ConclaveError

if TYPE_CHECKING:
    from pathlib import Path

FUSIONS = ("vote", "weighted")


@dataclass
class InterimReporter:
    """Follows a sweep's events, hands each one on, and says a line when another member is done. Scores are on *fuse* only.

    Attributes:
        plan: The plan.
        on_event: Gets every event that the reporter gets.
        say: Shows a line to people.
        reported: Number of members in the last line.
    """

    plan: Plan
    on_event: OnEvent
    say: Callable[[str], None]
    reported: int = 1
    thread: threading.Thread | None = field(default=None, repr=False)

    def __call__(self, event: Event) -> None:
        """Follow an event."""
        self.on_event(event)
        if event.kind == "published" and event.job.fold is None and not event.job.teachers:
            roots = self._finished_members()
            is_busy = self.thread is not None and self.thread.is_alive()
            if self.reported < len(roots) < len(self.plan.team.members) and not is_busy:
                self.reported = len(roots)
                self.thread = threading.Thread(target=self._report, args=(roots,), daemon=True, name="conclave-interim")
                self.thread.start()

    def close(self) -> None:
        """Wait for a line that is being worked out, so that it does not come after the end."""
        if self.thread:
            self.thread.join()

    def _finished_members(self) -> dict[str, Path]:
        full = [self.plan.of_member(member.name)[0] for member in self.plan.team.members]
        return {planned.member.name: planned.artifact.root for planned in full if planned.artifact.done}

    def _report(self, roots: dict[str, Path]) -> None:
        """Fit and report. This runs off the scheduler's thread, which must not wait for it."""
        import numpy as np

        from fusion.metrics.scores import scores
        from fusion.predictions import LabelledRows, load_predictions
        from fusion.selection.fitting import fit_all
        from fusion.selection.recommendation import best_single

        store, nothing = self.plan.store, np.zeros(0, dtype=np.int64)
        try:
            team = load_predictions(roots, {}, LabelledRows(store.classes, np.asarray(store.labels), nothing, nothing))
        except ConclaveError:
            return  # the fusion step, which can't do without a damaged artifact, reports it
        fitted = fit_all(team, FUSIONS)
        candidates = (best_single(team, fitted, self.plan.team.metric), *FUSIONS)
        accuracy = {name: scores(fitted[name].nested, team.inputs.fuse.labels).accuracy for name in candidates}
        text = ", ".join(f"{name} {value:.2%}" for name, value in accuracy.items())
        self.say(f"so far, with {len(roots)} of {len(self.plan.team.members)} members, on fuse: {text}")
