"""Track how much of its `budget:` a sweep has used. Once the budget is used up, no further job starts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.config.team import Team
from orchestrator.execution.executor import Event, OnEvent
from orchestrator.home import SweepFolder
from orchestrator.planning.plan import Plan
from orchestrator.results import Spending
from workers.config.resources import Resources

SAVE_SECONDS = 30.0  # between two records of what running jobs cost
_RAISE = "raise it and run again: finished work is kept"


@dataclass
class BudgetTracker:
    """Counts a sweep's costs from its events, and passes each event on.

    `max_hours` limits the wall-clock time of this run, including its searches. `max_cost` limits the cost of all runs of the
    sweep: the trainer time of searches and jobs, including failed attempts, times the hourly price of one trainer, and the time
    of the head times its price. Waiting for a machine costs nothing. A training on four GPUs counts four times, and one on half
    a GPU by half.

    Attributes:
        team: The team, with its budget and prices.
        on_event: Called with every event, after it is counted.
        began: Start of the sweep by `clock`.
        spent: What earlier runs spent.
        search_seconds: Trainer seconds of the searches.
        save: Called with what was spent so far, whenever a job ends and every SAVE_SECONDS.
        clock: Returns the time in seconds.
    """

    team: Team
    on_event: OnEvent
    began: float
    spent: Spending = field(default_factory=Spending)
    search_seconds: float = 0.0
    save: Callable[[Spending], None] = lambda spending: None
    clock: Callable[[], float] = time.monotonic
    running: dict[str, tuple[float, float]] = field(default_factory=dict)  # job key -> (start, number of trainers)
    ended_seconds: float = 0.0  # trainer seconds of this run's ended jobs
    saved_at: float = -SAVE_SECONDS

    @classmethod
    def from_plan(cls, plan: Plan, folder: SweepFolder, on_event: OnEvent, began: float) -> BudgetTracker:
        """Return a tracker that goes on from a sweep's earlier runs; without a record of them, from its finished trainings."""
        spent = folder.spending()
        if spent is None:
            finished = {planned.signature: planned.artifact for planned in plan.members if planned.signature in plan.done}
            spent = Spending(trainer_seconds=sum(artifact.manifest().train_seconds for artifact in finished.values()))
        return cls(plan.team, on_event, began, spent, sum(plan.searched.values()), folder.keep)

    def __call__(self, event: Event) -> None:
        """Count an event, and pass it on."""
        key = event.job.key
        if event.kind == "working":
            self._end(key)
            self.running[key] = (self.clock(), trainers(event.job.recipe.resources))
        elif event.kind not in ("started", "epoch", "note", "published") and key in self.running:
            self._end(key)
            self._save()
        self.on_event(event)

    def end_all(self) -> None:
        """Count the jobs that run as ended, because Ray itself has ended."""
        for key in list(self.running):
            self._end(key)
        self._save()

    def why_exhausted(self) -> str | None:
        """Return the reason that no further job may start, or None while the budget lasts."""
        budget = self.team.budget
        if self.clock() - self.saved_at >= SAVE_SECONDS:
            self._save()
        if budget.max_hours and self._run_seconds() / 3600 >= budget.max_hours:
            return f"budget: max_hours {budget.max_hours:g} is reached; {_RAISE}"
        if budget.max_cost and self._cost() >= budget.max_cost:
            return f"budget: max_cost {budget.max_cost:g} is reached; {_RAISE}"
        return None

    def _cost(self) -> float:
        spent = self._spending()
        trainers_cost = self.team.trainer_hour_price * (spent.trainer_seconds + self.search_seconds)
        return (trainers_cost + (self.team.budget.head or 0.0) * spent.run_seconds) / 3600

    def _run_seconds(self) -> float:
        return self.clock() - self.began

    def _spending(self) -> Spending:
        """Return what all runs have spent by now, without the searches."""
        running = sum((self.clock() - start) * count for start, count in self.running.values())
        return Spending(
            trainer_seconds=self.spent.trainer_seconds + self.ended_seconds + running,
            run_seconds=self.spent.run_seconds + self._run_seconds(),
        )

    def _end(self, key: str) -> None:
        start, count = self.running.pop(key, (0.0, 0.0))
        self.ended_seconds += (self.clock() - start) * count

    def _save(self) -> None:
        self.saved_at = self.clock()
        with contextlib.suppress(OSError):  # a full disk: the next record has it
            self.save(self._spending())


def trainers(resources: Resources) -> float:
    """Return how many trainers a job pays for: its processes, or the part of a GPU that it shares."""
    gpus = resources.gpus
    return gpus if gpus and gpus < 1 else float(resources.processes)
