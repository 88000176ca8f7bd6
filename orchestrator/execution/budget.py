"""Count what a sweep has used of its `budget:`. Once it is used up, no further job starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.config.team import Team
from orchestrator.execution.executor import Event, OnEvent
from orchestrator.planning.plan import Plan

_RAISE = "raise it and run again: what is done is kept"


@dataclass
class BudgetTracker:
    """Counts a sweep's costs from its events, and hands each event on.

    `max_hours` counts the clock of this run, its searches included. `max_cost` counts all runs of the sweep: what searches and
    finished trainings took, and what trainers have worked since, failed tries included, by the hourly price of one trainer. A
    trainer that waits for a machine costs nothing. A training by four processes counts four times.

    Attributes:
        team: The team, with its budget and prices.
        on_event: Gets every event that the tracker gets.
        paid_seconds: Training seconds that earlier runs paid for.
        clock: Returns the time in seconds.
        began: When the sweep began, by the same clock; now, where left out.
    """

    team: Team
    on_event: OnEvent
    paid_seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic
    began: float | None = None
    running: dict[str, tuple[float, int]] = field(default_factory=dict)  # key of a job -> (since when, number of processes)

    def __post_init__(self) -> None:
        if self.began is None:
            self.began = self.clock()

    @classmethod
    def from_plan(cls, plan: Plan, on_event: OnEvent, began: float) -> BudgetTracker:
        """Return a tracker that counts what the finished jobs of a plan have cost already."""
        paid_seconds = 0.0
        if plan.team.budget.max_cost:
            finished = {planned.signature: planned.artifact for planned in plan.members if planned.signature in plan.done}
            paid_seconds = sum(artifact.manifest().train_seconds for artifact in finished.values())
            paid_seconds += sum(plan.searched.values())
        return cls(plan.team, on_event, paid_seconds, began=began)

    def __call__(self, event: Event) -> None:
        """Count an event, and hand it on."""
        key = event.job.key
        if event.kind == "working":
            self.running[key] = (self.clock(), event.job.recipe.resources.processes)
        elif event.kind not in ("started", "epoch", "note", "published") and key in self.running:
            self.paid_seconds += self._seconds_since(*self.running.pop(key))
        self.on_event(event)

    def why_exhausted(self) -> str | None:
        """Return why no further job may start, or None while the budget lasts."""
        budget = self.team.budget
        assert self.began is not None
        hours = (self.clock() - self.began) / 3600
        if budget.max_hours and hours >= budget.max_hours:
            return f"budget: max_hours {budget.max_hours:g} is reached; {_RAISE}"
        if budget.max_cost:
            running_seconds = sum(self._seconds_since(*start) for start in self.running.values())
            cost = self.team.trainer_hour_price * (self.paid_seconds + running_seconds) / 3600
            if cost >= budget.max_cost:
                return f"budget: max_cost {budget.max_cost:g} is reached; {_RAISE}"
        return None

    def _seconds_since(self, start: float, processes: int) -> float:
        return (self.clock() - start) * processes
