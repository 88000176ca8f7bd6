"""The sweep's runs: which are made before anything starts, which as their jobs do, and how an interrupted sweep finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import runs
from orchestrator.home import Home
from orchestrator.plan import Plan
from orchestrator.runs import Runs
from tests.orchestrator.test_plan import planned

TEAM = "name: t\ndata: {folds: 2}\ntrain: {epochs: 9}\nmembers: [{name: m, count: 3}]\n"


def opened(made: Plan, home: Path, restart: tuple[str, ...] = ()) -> Runs:
    folder = Home(home).sweep("t")
    folder.path.mkdir(parents=True, exist_ok=True)
    (home / "team.yaml").write_text(TEAM)
    return Runs.open(home / "team.yaml", made, folder, Home(home).tracking_uri, Home(home), restart)


def test_of_a_large_plan_runs_are_made_as_jobs_start_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SHOWN", 4)
    made = planned(TEAM, tmp_path)
    first = opened(made, tmp_path)
    assert list(first.jobs) == [job.signature for job in made.jobs[:4]]
    late = made.of("m-3")[2]
    run = first.run(late)
    tags = first.tracking.client.get_run(run).data.tags
    assert tags["mlflow.parentRunId"] == first.jobs[made.of("m-3")[0].signature], "nested under its member's"
    again = opened(made, tmp_path)  # the first was killed: its sweep.json knows four
    assert again.run(late) == run
    assert again.parent == first.parent


def test_a_restarted_fits_run_is_not_found_again(tmp_path: Path) -> None:
    made = planned(TEAM, tmp_path)
    before = dict(opened(made, tmp_path).jobs)
    after = opened(made, tmp_path, restart=("m-2",)).jobs
    mine = {job.signature for job in made.of("m-2")}
    assert {s for s in before if before[s] != after[s]} == mine
    assert opened(made, tmp_path).jobs == after
