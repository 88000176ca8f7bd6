"""The sweep's runs: which are made before anything starts, which as their jobs do, and how an interrupted sweep finds them."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from mlflow.exceptions import MlflowException

from orchestrator import home as home_module
from orchestrator import sweep
from orchestrator.execution.job_outcomes import Outcome
from orchestrator.home import Home
from orchestrator.planning.plan import Plan
from orchestrator.sweep import SweepOptions, _Sweep
from orchestrator.tracking import member_runs as runs
from orchestrator.tracking.sweep_runs import SweepLocation, SweepRuns
from tests.factories import planned, record
from workers.errors import ConclaveError, StoreUnavailableError, UserInputError
from workers.storage import files
from workers.storage.artifacts import MemberArtifact
from workers.tracking.client import TrackingClient
from workers.tracking.delivery import flush_outbox
from workers.tracking.entries import now_ms

TEAM = "name: t\ndata: {folds: 2}\ntrain: {epochs: 9}\nmembers: [{name: m, count: 3}]\n"


def opened(made: Plan, home: Path, restart: tuple[str, ...] = ()) -> SweepRuns:
    folder = Home(home).sweep("t")
    folder.path.mkdir(parents=True, exist_ok=True)
    (home / "team.yaml").write_text(TEAM)
    return SweepRuns.open(SweepLocation(home / "team.yaml", Home(home), folder, Home(home).tracking_uri), made, restart)


def test_of_a_large_plan_runs_are_made_as_jobs_start_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FIRST_RUNS", 4)
    made = planned(TEAM, tmp_path)
    first = opened(made, tmp_path)
    assert list(first.ids) == [one.signature for one in made.members[:4]]
    late = made.of_member("m-3")[2]
    run = first.run_id(late)
    tags = first.tracking.client.get_run(run).data.tags
    assert tags["mlflow.parentRunId"] == first.ids[made.of_member("m-3")[0].signature], "nested under its member's"
    again = opened(made, tmp_path)  # the first was killed: its sweep.json knows four
    assert again.run_id(late) == run
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
    assert one.run_id_or_none(late) is None
    assert one.run_id_or_none(made.of_member("m-3")[0]) is None
    assert len(asked) == 1, "who was not answered does not hold up job after job"
    assert one.run_id_or_none(made.of_member("m-1")[0]) == one.ids[made.of_member("m-1")[0].signature], (
        "what is known needs nobody"
    )
    monkeypatch.setattr(TrackingClient, "create_run", start)
    monkeypatch.setattr(MemberArtifact, "done", property(lambda self: self.root.name == late.signature))
    monkeypatch.setattr(MemberArtifact, "manifest", lambda self: record())
    one.away_until = 0.0
    one.collect({late.job.key: Outcome(late.job)})
    flush_outbox(one.outbox)
    run = one.tracking.client.get_run(one.ids[late.signature])
    assert (run.info.status, run.data.tags["state"], run.data.metrics["train/loss"]) == ("FINISHED", "done", 0.5)


def state_of(one: SweepRuns, run: str) -> tuple[str, str]:
    found = one.tracking.client.get_run(run)
    return found.info.status, found.data.tags["state"]


def finished(monkeypatch: pytest.MonkeyPatch, signature: str) -> None:
    monkeypatch.setattr(MemberArtifact, "done", property(lambda self: self.root.name == signature))
    monkeypatch.setattr(MemberArtifact, "manifest", lambda self: record())


def test_an_old_status_never_overwrites_a_newer_one(tmp_path: Path) -> None:
    """As after Ctrl-C with the store away, and a complete rerun: what was kept arrives last."""
    made = planned(TEAM, tmp_path)
    one = opened(made, tmp_path)
    run = one.ids[made.members[0].signature]
    one.outbox.status(run, "FINISHED", 2000, {"state": "done"})
    one.outbox.status(run, "KILLED", 1000, {"state": "interrupted"})
    one.outbox.status(run, "RUNNING", 500, {"state": "running"})
    flush_outbox(one.outbox, one.tracking)
    assert state_of(one, run) == ("FINISHED", "done")
    one.outbox.status(run, "RUNNING", 3000, {"state": "running"})
    flush_outbox(one.outbox, one.tracking)
    assert state_of(one, run) == ("RUNNING", "running")


def test_a_run_that_failed_is_finished_once_its_training_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trained it in the meantime."""
    made = planned(TEAM, tmp_path)
    one = opened(made, tmp_path)
    first, second = made.members[:2]
    one.outbox.status(one.ids[first.signature], "FAILED", now_ms(), {"state": "failed"})
    finished(monkeypatch, first.signature)
    assert one.flush(30) == 0
    assert state_of(one, one.ids[first.signature]) == ("FINISHED", "done")
    assert state_of(one, one.ids[second.signature]) == ("KILLED", "not done"), "nothing is left running for ever"


def test_a_driver_killed_before_it_wrote_of_its_runs_finds_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(TEAM, tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(SweepRuns, "_save", lambda self, fingerprint=None: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            opened(made, tmp_path)
    one = opened(made, tmp_path)
    found = one.tracking.client.search_runs([one.experiment], max_results=100)
    assert len(found) == len({run.data.tags.get("signature", "the sweep") for run in found}) == 1 + len(made.members)


def test_a_run_that_was_made_twice_because_an_answer_got_lost_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "FIRST_RUNS", 1)
    monkeypatch.setattr(runs, "AWAY_SECONDS", 0.0)
    made = planned(TEAM, tmp_path)
    one, create = opened(made, tmp_path), TrackingClient.create_run

    def lost(*given: object) -> str:
        create(*given)  # type: ignore[arg-type]
        raise ConnectionError("the answer got lost")

    late = made.of_member("m-2")[0]
    with monkeypatch.context() as away:
        away.setattr(TrackingClient, "create_run", lost)
        assert one.run_id_or_none(late) is None
    run = one.run_id_or_none(late)
    one.flush(30)
    mine = [child for child in one.tracking.children(one.experiment, one.parent) if child.signature == late.signature]
    assert [child.run for child in mine] == [run]


def test_a_home_that_was_moved_goes_on_with_its_runs_and_sends_what_it_kept(tmp_path: Path) -> None:
    made = planned(TEAM, tmp_path / "old")
    one = opened(made, tmp_path / "old")
    (tmp_path / "old" / "sweeps" / "t" / "note.txt").write_text("kept")
    one.outbox.artifact(one.parent, tmp_path / "old" / "sweeps" / "t" / "note.txt")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = opened(made, tmp_path / "new")
    assert (moved.parent, moved.ids) == (one.parent, one.ids)
    assert moved.flush(30) == 0
    assert not (tmp_path / "old").exists()
    assert [path.read_text() for path in (tmp_path / "new" / "artifacts").rglob("note.txt")] == ["kept"]


@pytest.mark.parametrize("letter", ["?", "%"])
def test_a_home_that_no_database_can_lie_in_is_refused(letter: str, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="can't hold"):
        Home(tmp_path / f"a{letter}b")


def test_a_database_that_can_not_be_written_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(TEAM, tmp_path)
    one = opened(made, tmp_path)

    def is_locked(*_: object, **__: object) -> None:
        raise MlflowException("(sqlite3.OperationalError) database is locked\n[SQL: INSERT INTO runs ...]")

    monkeypatch.setattr(type(one.tracking.client), "create_run", is_locked)
    with pytest.raises(ConclaveError, match=r"mlflow\.db: \(sqlite3\.OperationalError\) database is locked\. What is finished"):
        one.tracking.create_run(one.experiment, "x", {})


def test_a_clock_that_was_set_back_leaves_no_run_with_an_old_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(TEAM, tmp_path)
    one = opened(made, tmp_path)
    first = made.members[0]
    one.outbox.status(one.ids[first.signature], "FAILED", now_ms() + 10**9, {"state": "failed"})
    finished(monkeypatch, first.signature)
    assert one.flush(30) == 0
    assert state_of(one, one.ids[first.signature]) == ("FINISHED", "done")


@dataclass
class Prepared:
    """A sweep that is about to open its runs, in a store that answered a moment ago."""

    sweep: _Sweep
    made: Plan
    said: list[str]


def prepared(made: Plan, home: Path, uri: str) -> Prepared:
    folder, said = Home(home).sweep("t"), list[str]()
    folder.path.mkdir(parents=True, exist_ok=True)
    (home / "team.yaml").write_text(TEAM)
    options = SweepOptions(Home(home), make_executor=Mock(), say=said.append)
    place = SweepLocation(home / "team.yaml", Home(home), folder, uri)
    return Prepared(_Sweep(place, options, made), made, said)


def test_a_store_that_went_away_before_the_first_run_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prepared(planned(TEAM, tmp_path), tmp_path, Home(tmp_path).tracking_uri)
    kind = type(TrackingClient(one.sweep.location.uri).client)
    log_batch, answers = kind.log_batch, iter(["away", "here"])

    def is_away_first(*given: Any, **named: Any) -> None:
        if next(answers, "here") == "away":
            raise MlflowException("Max retries exceeded")
        log_batch(*given, **named)

    monkeypatch.setattr(kind, "log_batch", is_away_first)
    monkeypatch.setattr("workers.diagnostics.waiting.time.sleep", lambda seconds: None)
    one.sweep._open_runs()
    opened_runs = one.sweep.runs
    found = opened_runs.tracking.client.search_runs([opened_runs.experiment], max_results=100)
    assert len(found) == 1 + len(one.made.members), "the run that was there already is none too many"
    assert all(run.data.params for run in found), "whose settings had not arrived, too"
    assert one.said == []


@pytest.mark.parametrize("required", [True, False])
def test_a_store_that_stays_away_before_the_first_run(required: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "STORE_RETRY_SECONDS", 0.0)
    text = TEAM + f"tracking: {{uri: 'http://127.0.0.1:9', required: {str(required).lower()}}}\n"
    one = prepared(planned(text, tmp_path), tmp_path, "http://127.0.0.1:9")
    if required:
        with pytest.raises(StoreUnavailableError, match=r"tracking http://127\.0\.0\.1:9: .* run again"):
            one.sweep._open_runs()
        return
    one.sweep._open_runs()
    opened_runs = one.sweep.runs
    assert opened_runs.tracking.uri == one.sweep.location.uri == Home(tmp_path).tracking_uri
    assert len(opened_runs.ids) == len(one.made.members)
    assert "is tracked in" in one.said[0]


def test_a_store_that_goes_away_before_a_download_lets_nothing_be_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(TEAM, tmp_path)
    one, first = opened(made, tmp_path), made.members[0]
    one.outbox.status(one.ids[first.signature], "FINISHED", now_ms() + 1, {"state": "done"})
    flush_outbox(one.outbox)
    one.import_remote()
    assert not first.artifact.done, "its files are gone, so it is trained again"

    def is_away(*_: object, **__: object) -> None:
        raise MlflowException("Max retries exceeded")

    monkeypatch.setattr(type(one.tracking.client), "get_run", is_away)
    monkeypatch.setattr(TrackingClient, "download", lambda *_, **__: None)
    with pytest.raises(StoreUnavailableError):
        one.import_remote()


def test_the_sweeps_own_run_says_how_it_ended_though_a_clock_was_set_back(tmp_path: Path) -> None:
    made = planned(TEAM, tmp_path)
    one = opened(made, tmp_path)
    one.outbox.status(one.parent, "KILLED", now_ms() + 300_000, {"state": "interrupted"})
    flush_outbox(one.outbox, one.tracking)
    one.stop("FAILED", "failed")
    assert one.flush(30) == 0
    assert state_of(one, one.parent) == ("FAILED", "failed")


def test_a_sweeps_run_that_was_made_twice_is_there_once(tmp_path: Path) -> None:
    """MLflow's client asks again by itself where an answer got lost."""
    made = planned(TEAM, tmp_path)
    one = opened(made, tmp_path)
    tags = {"team": "t", "role": "sweep", "state": "running", "folder": one.location.folder.identifier()}
    double = one.tracking.create_run(one.experiment, "t", tags)
    one.stop("FAILED", "failed")
    assert one.flush(30) == 0
    assert [run.run for run in one.tracking.sweeps_of(one.experiment, tags["folder"])] == [one.parent]
    assert double != one.parent


def test_a_run_that_is_trained_afresh_is_left_ended(tmp_path: Path) -> None:
    """Whose driver was killed on the way, it would run for ever."""
    made = planned(TEAM, tmp_path)
    one = opened(made, tmp_path)
    before = one.ids[made.of_member("m-2")[0].signature]
    one.outbox.status(before, "RUNNING", 1000, {"state": "running"})
    flush_outbox(one.outbox, one.tracking)
    finished_run = one.ids[made.of_member("m-1")[0].signature]
    one.outbox.status(finished_run, "FINISHED", 1000, {"state": "done"})
    flush_outbox(one.outbox, one.tracking)
    opened(made, tmp_path, restart=("m-1", "m-2"))
    assert state_of(one, before) == ("KILLED", "restarted")
    assert state_of(one, finished_run) == ("FINISHED", "restarted"), "and one that was finished stays so"


def test_the_run_of_a_copied_homes_sweep_is_no_double(tmp_path: Path) -> None:
    """Copies of a home have one identifier, and may begin at once on one server."""
    made = planned(TEAM, tmp_path)
    one = opened(made, tmp_path)
    identifier = one.location.folder.identifier()
    tags = {"team": "t", "role": "sweep", "state": "running", "folder": identifier}
    other = one.tracking.create_run(one.experiment, "t", tags)
    one.tracking.create_run(one.experiment, "m", {"sweep": other, "state": "running"}, other)
    one.stop("FAILED", "failed")
    assert one.flush(30) == 0
    assert other in [run.run for run in one.tracking.sweeps_of(one.experiment, identifier)]


def test_a_sweep_that_runs_again_is_not_called_by_its_last_end(tmp_path: Path) -> None:
    from orchestrator.cli.team_commands import _status_of

    home = Home(tmp_path)
    folder = home.sweep("tiny")
    with folder.locked():
        assert _status_of(home, "tiny")["state"] == "running"
    assert _status_of(home, "tiny")["state"] == "unfinished"
    for note in (f"process {2**22 + 1} on {os.uname().nodename}, since then", "{"):
        folder.holder.write_text(note)
        assert not folder.is_running(), "its process is gone"
    folder.holder.write_text("process 1 on another-machine, since then")
    assert folder.is_running()


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without the kernel's locks, as some shared ones of clusters are, on which a lease lasts two seconds."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(files, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(home_module, "LEASE_SECONDS", 2.0)


@pytest.mark.usefixtures("no_flock")
def test_without_locks_of_the_disk_the_lease_of_a_dead_pod_ends_and_that_of_a_living_one_does_not(tmp_path: Path) -> None:
    folder, said = Home(tmp_path).sweep("tiny"), list[str]()
    with folder.locked():
        marker = next(folder.path.glob(".lock*"))
        lease = marker.read_text()
        assert socket.gethostname() in lease
        with pytest.raises(UserInputError, match=r"tiny is running already \(process \d+ on "), folder.locked():
            pass
    assert not marker.exists()
    marker.write_text(lease.replace(socket.gethostname(), "another-pod"))
    folder.holder.write_text("process 7 on another-pod, since then")
    with folder.locked(said.append):
        assert said == ["process 7 on another-pod, since then, may still sweep here: waiting 2 s for its sign of life"]
