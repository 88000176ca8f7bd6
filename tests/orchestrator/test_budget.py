"""The budget: what counts, by which clock, and what a sweep does once it is used up."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import sweep as pipeline
from orchestrator.config import loader as config
from orchestrator.config import yaml_document as teamfile
from orchestrator.config.team import Team
from orchestrator.execution.budget import BudgetTracker
from orchestrator.execution.executor import Event
from orchestrator.execution.ray_backend import inline_executor
from orchestrator.home import Home, SweepFolder
from orchestrator.results import Spending
from tests.factories import TEAM, job
from workers.errors import UserInputError

MEMBERS = "name: t\nmembers: [{name: a}, {name: b}]\n"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def metered(text: str, paid_seconds: float = 0.0) -> tuple[BudgetTracker, Clock]:
    clock = Clock()
    spent = Spending(trainer_seconds=paid_seconds)
    return BudgetTracker(team(text), lambda event: None, clock.now, spent, clock=clock), clock


def team(text: str) -> Team:
    return config.resolve_team(teamfile.parse_document(MEMBERS + text, Path("/somewhere/team.yaml")))


def test_hours_are_by_the_clock() -> None:
    meter, clock = metered("budget: {max_hours: 2}\n")
    clock.now += 7199
    assert meter.why_exhausted() is None
    clock.now += 1
    assert "max_hours 2 is reached" in str(meter.why_exhausted())


def test_cost_is_what_trainers_worked_failed_tries_included() -> None:
    """Two trainers at 3 an hour: one works half an hour and fails, the other still runs; earlier runs paid 0.5 hours."""
    meter, clock = metered("prices: {spot: 3, own: 1}\nbudget: {max_cost: 6, price: spot}\n", paid_seconds=1800)
    first, second = job("a"), job("b")
    meter(Event(first, "working"))
    clock.now += 900
    meter(Event(second, "working"))
    clock.now += 900
    meter(Event(first, "epoch", 1))
    meter(Event(first, "retry"))
    clock.now += 1799
    assert meter.why_exhausted() is None, "0.5 + 0.5 + 0.75 hours at 3"
    clock.now += 901
    assert "max_cost 6 is reached" in str(meter.why_exhausted())


def test_who_waits_for_a_machine_costs_nothing_and_several_processes_cost_several_times() -> None:
    meter, clock = metered("prices: {spot: 1}\nbudget: {max_cost: 2}\n")
    four = job("a", resources={"workers": 4})
    assert four.recipe.resources.processes == 4
    meter(Event(four, "started"))
    clock.now += 36_000
    assert meter.why_exhausted() is None
    meter(Event(four, "working"))
    clock.now += 1799
    assert meter.why_exhausted() is None, "half an hour of four"
    clock.now += 2
    assert "max_cost 2 is reached" in str(meter.why_exhausted())


def test_two_trainings_that_share_a_gpu_pay_for_one() -> None:
    meter, clock = metered("prices: {spot: 1}\nbudget: {max_cost: 1}\n")
    for name in ("a", "b"):
        meter(Event(job(name, resources={"gpus": 0.5}), "working"))
    clock.now += 3599
    assert meter.why_exhausted() is None
    clock.now += 2
    assert "max_cost 1 is reached" in str(meter.why_exhausted())


def test_the_head_has_a_price_and_pays_for_as_long_as_the_runs_last() -> None:
    meter, clock = metered("prices: {spot: 1}\nbudget: {max_cost: 1, head: 0.5}\n")
    meter.spent = Spending(run_seconds=3600)
    clock.now += 3599
    assert meter.why_exhausted() is None
    clock.now += 2
    assert "max_cost 1 is reached" in str(meter.why_exhausted())


def test_what_was_spent_survives_the_end_of_ray_and_of_the_process(tmp_path: Path) -> None:
    """An hour of a job that Ray took along, and 25 minutes of one that was killed with the command."""
    folder, clock = SweepFolder(tmp_path), Clock()
    text = team("prices: {spot: 1}\nbudget: {max_cost: 1.5}\n")
    meter = BudgetTracker(text, lambda event: None, clock.now, save=folder.keep, clock=clock)
    meter(Event(job("a"), "working"))
    clock.now += 3600
    meter.end_all()  # Ray has ended
    clock.now += 3600
    meter(Event(job("a"), "working"))
    clock.now += 1500
    assert meter.why_exhausted() is None, "an hour and 25 minutes"
    spent = folder.spending()
    assert spent is not None
    assert (spent.trainer_seconds, spent.run_seconds) == (5100, 8700)
    again = BudgetTracker(text, lambda event: None, clock.now, spent, clock=clock)
    again(Event(job("a"), "working"))
    clock.now += 299
    assert again.why_exhausted() is None
    clock.now += 2
    assert "max_cost 1.5 is reached" in str(again.why_exhausted())


def test_the_hours_of_a_search_count() -> None:
    clock = Clock()
    meter = BudgetTracker(team("budget: {max_hours: 2}\n"), lambda event: None, clock.now - 7200, clock=clock)
    assert "max_hours 2 is reached" in str(meter.why_exhausted())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("budget: {max_cost: 1}\n", "budget.max_cost needs `prices:`"),
        ("budget: {max_cost: 1}\nprices: {spot: 1, own: 2}\n", "say which price counts: spot, own"),
        ("budget: {max_cost: 1, price: sport}\nprices: {spot: 1}\n", "sport is none of `prices`: spot"),
        ("budget: {max_hours: 0}\n", "greater than 0"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UserInputError, match=expected):
        team(text)


def test_a_used_up_budget_leaves_a_partial_team_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    """The first fit uses it up: the second member and all fold fits wait for the next run."""
    file = tmp_path / "team.yaml"
    file.write_text(TEAM + "quorum: 1\nprices: {spot: 1}\nbudget: {max_cost: 1.0e-9}\n")
    options = pipeline.SweepOptions(Home(tmp_path / "home"), inline_executor)
    first = pipeline.run_sweep(file, options)
    assert first.exit_code == 3
    states = [member.state for member in first.summary.members.values()]
    assert states == ["done", "skipped"]
    assert "max_cost 1e-09 is reached; raise it and run again" in first.summary.members["b"].reason
    again = pipeline.run_sweep(file, options)
    assert (again.summary.trained, again.summary.reused) == (0, 1), "what earlier runs paid counts"
    file.write_text(TEAM + "quorum: 1\nprices: {spot: 1}\nbudget: {max_cost: 1000}\n")
    last = pipeline.run_sweep(file, options)
    assert (last.exit_code, last.summary.trained, last.summary.reused) == (0, 5, 1)
