"""What a sweep has used of its `budget:`, told by its events; once that is all, nothing new starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.launch import Event, Watch
from orchestrator.plan import Plan
from orchestrator.team import Team
from workers.artifact import MemberArtifact

_RAISE = "raise it and run again: what is done is kept"


@dataclass
class Meter:
    """Follows a sweep's events in place of `watch`, which it hands them on to.

    `max_hours` is by the clock, of this run, what it searched included. `max_cost` is of all runs: what searches and the fits
    that are done took, and what trainers work on since then, failed tries included, by the hour's price of one trainer; one
    that waits for its machine costs nothing, one of four processes is four.
    """

    team: Team
    watch: Watch
    paid: float = 0.0  # seconds of training that earlier runs paid for
    clock: Callable[[], float] = time.monotonic
    running: dict[str, tuple[float, int]] = field(default_factory=dict)  # signature -> since when, by how many processes

    began: float | None = None  # by the same clock; now, where left out

    def __post_init__(self) -> None:
        self.since = self.clock() if self.began is None else self.began

    @classmethod
    def of(cls, todo: Plan, watch: Watch, began: float) -> Meter:
        paid = 0.0
        if todo.team.budget.max_cost:
            done = [MemberArtifact.of(job.home, job.signature) for job in todo.jobs if job.signature in todo.done]
            paid = sum(artifact.manifest()["train_seconds"] for artifact in done) + sum(todo.searched.values())
        return cls(todo.team, watch, paid, began=began)

    def __call__(self, event: Event) -> None:
        signature, now = event.job.signature, self.clock()
        if event.kind == "working":
            self.running[signature] = (now, event.job.member.resources.processes)
        elif event.kind not in ("started", "epoch", "note") and signature in self.running:
            self.paid += self._spent(*self.running.pop(signature))
        self.watch(event)

    def _spent(self, since: float, processes: int) -> float:
        return (self.clock() - since) * processes

    def reached(self) -> str | None:
        """Why nothing new may start, or None."""
        budget, now = self.team.budget, self.clock()
        hours = (now - self.since) / 3600
        if budget.max_hours and hours >= budget.max_hours:
            return f"budget: max_hours {budget.max_hours:g} is reached; {_RAISE}"
        if budget.max_cost:
            cost = self.team.hour * (self.paid + sum(self._spent(*one) for one in self.running.values())) / 3600
            if cost >= budget.max_cost:
                return f"budget: max_cost {budget.max_cost:g} is reached; {_RAISE}"
        return None
