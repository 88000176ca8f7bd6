"""The sweep's runs: which are made before anything starts, which as their jobs do, and how an interrupted sweep finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.execution.outcomes import Outcome
from orchestrator.home import Home
from orchestrator.planning.plan import Plan
from orchestrator.tracking import member_runs as runs
from orchestrator.tracking.sweep_runs import SweepPlace, SweepRuns
from tests.factories import planned, record
from workers.storage.artifacts import MemberArtifact
from workers.tracking.client import TrackingClient
from workers.tracking.delivery import flush_outbox

TEAM = "name: t\ndata: {folds: 2}\ntrain: {epochs: 9}\nmembers: [{name: m, count: 3}]\n"


def opened(made: Plan, home: Path, restart: tuple[str, ...] = ()) -> SweepRuns:
    folder = Home(home).sweep("t")
    folder.path.mkdir(parents=True, exist_ok=True)
    (home / "team.yaml").write_text(TEAM)
    return SweepRuns.open(SweepPlace(home / "team.yaml", Home(home), folder, Home(home).tracking_uri), made, restart)


def test_of_a_large_plan_runs_are_made_as_jobs_start_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FIRST_RUNS", 4)
    made = planned(TEAM, tmp_path)
    first = opened(made, tmp_path)
    assert list(first.ids) == [one.signature for one in made.members[:4]]
    late = made.of_member("m-3")[2]
    run = first.members.run_id(late)
    tags = first.tracking.client.get_run(run).data.tags
    assert tags["mlflow.parentRunId"] == first.ids[made.of_member("m-3")[0].signature], "nested under its member's"
    again = opened(made, tmp_path)  # the first was killed: its sweep.json knows four
    assert again.members.run_id(late) == run
    assert again.parent == first.parent


def test_a_restarted_fits_run_is_not_found_again(tmp_path: Path) -> None:
    made = planned(TEAM, tmp_path)
    before = dict(opened(made, tmp_path).ids)
    after = opened(made, tmp_path, restart=("m-2",)).ids
    mine = {one.signature for one in made.of_member("m-2")}
    assert {s for s in before if before[s] != after[s]} == mine
    assert opened(made, tmp_path).ids == after


def test_a_store_that_goes_away_ends_no_sweep_and_gets_its_runs_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FIRST_RUNS", 1)
    made = planned(TEAM, tmp_path)
    one, asked, start = opened(made, tmp_path), [], TrackingClient.create_run

    def away(*given: object) -> str:
        asked.append(given)
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(TrackingClient, "create_run", away)
    late = made.of_member("m-2")[0]
    assert one.members.run_id_or_none(late) is None
    assert one.members.run_id_or_none(made.of_member("m-3")[0]) is None
    assert len(asked) == 1, "who was not answered does not hold up job after job"
    assert one.members.run_id_or_none(made.of_member("m-1")[0]) == one.ids[made.of_member("m-1")[0].signature], (
        "what is known needs nobody"
    )
    monkeypatch.setattr(TrackingClient, "create_run", start)
    monkeypatch.setattr(MemberArtifact, "done", property(lambda self: self.root.name == late.signature))
    monkeypatch.setattr(MemberArtifact, "manifest", lambda self: record())
    one.members.away_until = 0.0
    one.collect_trainings({late.job.key: Outcome(late.job)})
    flush_outbox(one.outbox)
    run = one.tracking.client.get_run(one.ids[late.signature])
    assert (run.info.status, run.data.tags["state"], run.data.metrics["train/loss"]) == ("FINISHED", "done", 0.5)
