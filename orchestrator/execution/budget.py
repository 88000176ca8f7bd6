"""Track how much of its `budget:` a sweep has used. Once the budget is used up, no further job starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.config.team import Team
from orchestrator.execution.executor import Event, OnEvent
from orchestrator.planning.plan import Plan

_RAISE = "raise it and run again: finished work is kept"


@dataclass
class BudgetTracker:
    """Counts a sweep's costs from its events, and passes each event on.

    `max_hours` limits the wall-clock time of this run, including its searches. `max_cost` limits the cost of all runs of the
    sweep: the trainer time of searches, finished trainings and this run's jobs, including failed attempts, times the hourly
    price of one trainer. Waiting for a machine costs nothing. A training on four processes counts four times.

    Attributes:
        team: The team, with its budget and prices.
        on_event: Called with every event, after it is counted.
        began: Start of the sweep by `clock`.
        paid_seconds: Trainer seconds charged so far: earlier runs, searches and ended jobs.
        clock: Returns the time in seconds.
    """

    team: Team
    on_event: OnEvent
    began: float
    paid_seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic
    running: dict[str, tuple[float, int]] = field(default_factory=dict)  # job key -> (start, number of processes)

    @classmethod
    def from_plan(cls, plan: Plan, on_event: OnEvent, began: float) -> BudgetTracker:
        """Return a tracker that starts from the cost of a plan's finished jobs and searches."""
        paid_seconds = 0.0
        if plan.team.budget.max_cost:
            finished = {planned.signature: planned.artifact for planned in plan.members if planned.signature in plan.done}
            paid_seconds = sum(artifact.manifest().train_seconds for artifact in finished.values())
            paid_seconds += sum(plan.searched.values())
        return cls(plan.team, on_event, began, paid_seconds)

    def __call__(self, event: Event) -> None:
        """Count an event, and pass it on."""
        key = event.job.key
        if event.kind == "working":
            self.running[key] = (self.clock(), event.job.recipe.resources.processes)
        elif event.kind not in ("started", "epoch", "note", "published") and key in self.running:
            self.paid_seconds += self._seconds_since(*self.running.pop(key))
        self.on_event(event)

    def why_exhausted(self) -> str | None:
        """Return the reason that no further job may start, or None while the budget lasts."""
        budget = self.team.budget
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
