"""A tracking server that is away, comes back, or never does; and many writers on one SQLite file."""

from __future__ import annotations

import contextlib
import http.server
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.settings import TrackingSpec
from orchestrator.home import Home
from orchestrator.tracking.store import resolve_tracking_uri
from tests.faults.mlflow_server import Server, free_port
from tests.faults.place import TEAM, Place, points, same
from workers.diagnostics.waiting import wait_until
from workers.errors import ConclaveError, UserInputError
from workers.tracking.client import TrackingClient
from workers.tracking.delivery import flush_outbox
from workers.tracking.entries import MetricsEntry
from workers.tracking.job_run import Sender
from workers.tracking.outbox import Outbox


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "server")
    made.up()
    yield made
    made.down()


def test_away_at_the_start_is_refused_in_time(place: Place) -> None:
    with socket.socket() as silent:  # takes the connection and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (free_port(), silent.getsockname()[1]):
            place.write(TEAM + f"tracking: {{uri: 'http://127.0.0.1:{port}'}}\n")
            before = place.disk()
            place.sweep("--inline", code=2)
            assert "doesn't answer" in place.said()
            assert place.disk() == before
            began = time.monotonic()  # of the question alone: how long a busy machine takes to import is another matter
            with pytest.raises(UserInputError):
                resolve_tracking_uri(
                    TrackingSpec(uri=f"http://127.0.0.1:{port}"), place.folder / "team.yaml", Home(place.home), print
                )
            assert time.monotonic() - began < 10


def test_away_but_not_required_is_tracked_in_the_home(place: Place, undisturbed: dict[str, Any]) -> None:
    place.write(TEAM + f"tracking: {{uri: 'http://127.0.0.1:{free_port()}', required: false}}\n")
    summary = place.sweep("--inline")
    assert summary["tracking_uri"].startswith("sqlite:")
    same(summary, undisturbed)


@pytest.mark.parametrize("exists", [True, False])
def test_a_server_whose_artifacts_are_a_path_is_refused_before_training(exists: bool, place: Place, tmp_path: Path) -> None:
    """Each client would write to that path on its own disk: finished runs without artifacts."""
    server = Server(tmp_path / "server", ("--no-serve-artifacts", "--default-artifact-root", f"{tmp_path}/shelf"))
    server.up()
    try:
        if exists:
            TrackingClient(server.uri).client.create_experiment("tiny")
        place.write(TEAM + f"tracking: {{uri: '{server.uri}'}}\n")
        place.sweep("--inline", code=2)
        said = place.said()
        assert "a path that each client would look for on its own disk" in said
        assert f"--serve-artifacts --artifacts-destination {tmp_path}/shelf" in said
        assert "name another experiment (`tracking.experiment`), for tiny keeps its place" in said
        assert not list(place.home.glob("jobs/*"))
        assert not (tmp_path / "shelf").exists()
    finally:
        server.down()


def test_down_in_mid_sweep_and_up_again(place: Place, server: Server, undisturbed: dict[str, Any]) -> None:
    place.write(TEAM + f"tracking: {{uri: '{server.uri}'}}\n")
    process = place.start("--inline", fault="fit.step@a:30:stop")
    _wait_for(lambda: place.happened() != [])
    server.down()
    os.kill(process.pid, signal.SIGCONT)
    place.wait_for("b: started")
    server.up()
    assert process.wait(timeout=300) == 0, place.said()
    summary = place.printed()
    _sync(place)
    same(summary, undisturbed)


def test_never_back_loses_nothing_and_sync_sends_it_once(place: Place, server: Server, undisturbed: dict[str, Any]) -> None:
    place.write(TEAM + f"tracking: {{uri: '{server.uri}'}}\n")
    process = place.start("--inline", fault="fit.step@a:30:stop")
    _wait_for(lambda: place.happened() != [])
    server.down()
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(timeout=300) == 0, place.said()
    summary = place.printed()
    assert summary["state"] == "done"
    assert summary["unsent"] > 0
    assert _sync(place, code=1)["left"] == summary["unsent"]
    server.up()
    assert _sync(place)["sent"] == summary["unsent"]
    once = points(summary)
    for marker in (place.home / "spool").glob("*.sent"):
        marker.unlink()  # as if nothing had been marked
    assert _sync(place)["sent"] > 0
    assert points(summary) == once
    same(summary, undisturbed)
    client = TrackingClient(server.uri).client
    assert client.get_model_version_by_alias("tiny", "champion").version == "1"
    assert len(client.search_model_versions("name = 'tiny'")) == 1


def test_a_fit_goes_on_from_the_checkpoint_in_the_tracking_store(place: Place, undisturbed: dict[str, Any]) -> None:
    """As on another machine, which has no checkpoint of its own."""
    import shutil

    place.write(TEAM + "checkpoint: {minutes: 0.0001}\n")
    process = place.start("--inline", fault="fit.step@b:50:hang")
    _wait_for(lambda: place.happened() != [] and _sent(place, place.fits()["b"].name))
    process.kill()
    process.wait()
    assert len(place.checkpoints("b")) == 2
    shutil.rmtree(place.fits()["b"])
    summary = place.sweep("--inline")
    assert json.loads((place.fits()["b"] / "fit/manifest.json").read_text())["resumed_from"] >= 1
    same(summary, undisturbed)


def _sent(place: Place, owner: str) -> bool:
    """Whether a checkpoint of this fit from after its first epoch is whole in the tracking store."""
    for path in place.folder.glob("home/artifacts/**/checkpoint/*/manifest.json"):
        with contextlib.suppress(FileNotFoundError, ValueError):  # on its way
            record = json.loads(path.read_text())
            if record["owner"] == owner and record["epoch"] >= 1:
                return True
    return False


def _write(home: str, uri: str, run: str, writer: int) -> None:
    outbox = Outbox.open(Path(home), f"w{writer}", uri)
    sender = Sender([outbox])
    sender.start()
    for step in range(40):
        outbox.metrics(run, {f"m{writer}": step / 7}, step, 1000 + step)
        sender.wake.set()
    sender.close(60)


def test_eight_writers_on_one_database_lose_and_double_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/db"
    tracking = TrackingClient(uri)
    run = tracking.create_run(tracking.experiment("e", tmp_path / "artifacts"), "r", {})
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path), uri, run, i)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    for outbox in Outbox.all_in_home(tmp_path):
        flush_outbox(outbox)
    for i in range(8):
        assert [p.step for p in tracking.client.get_metric_history(run, f"m{i}")] == list(range(40))


class Locked(http.server.BaseHTTPRequestHandler):
    """A server that answers, and lets nobody in."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 401)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_lets_nobody_in_is_refused_before_anything_is_written(place: Place) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Locked) as locked:
        threading.Thread(target=locked.serve_forever, daemon=True).start()
        place.write(TEAM + f"tracking: {{uri: 'http://127.0.0.1:{locked.server_port}'}}\n")
        before = place.disk()
        place.sweep("--inline", code=2)
        assert "can't be used" in place.said()
        assert place.disk() == before
        locked.shutdown()


@pytest.mark.parametrize(
    ("uri", "expected"), [("mlruns", "is a folder"), ("file:///tmp/x", "is a folder"), ("foo://bar", "can't be used")]
)
def test_a_store_of_an_unknown_kind_is_refused(uri: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=expected):
        resolve_tracking_uri(TrackingSpec(uri=uri), tmp_path / "team.yaml", Home(tmp_path), print)
    assert not list(tmp_path.iterdir())


def test_an_experiment_that_was_deleted_is_told(tmp_path: Path) -> None:
    tracking = TrackingClient(f"sqlite:///{tmp_path}/db")
    tracking.client.delete_experiment(tracking.experiment("e", tmp_path / "artifacts"))
    with pytest.raises(ConclaveError, match="was deleted") as refused:
        tracking.experiment("e", tmp_path / "artifacts")
    command = str(refused.value).split("`")[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["bash", "-c", command], env={**os.environ, "PATH": path}, check=True, capture_output=True)
    assert tracking.experiment("e", tmp_path / "artifacts"), "the command works as it is printed"


class Denies(http.server.BaseHTTPRequestHandler):
    """What MLflow's own server says to all, where it does not know the name that it is called by."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"Invalid Host header - possible DNS rebinding attack detected")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_what_a_server_denies_stays_in_the_spool(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Denies) as denying:
        thread = threading.Thread(target=denying.serve_forever, daemon=True)
        thread.start()
        outbox = Outbox.open(tmp_path, "s", f"http://127.0.0.1:{denying.server_port}")
        outbox.tags("r", {"state": "done"})
        with pytest.raises(Exception, match="403"):
            flush_outbox(outbox)
        assert len(outbox.unsent()) == 1
        denying.shutdown()


def test_a_torn_line_of_the_spool_is_passed_over(tmp_path: Path) -> None:
    outbox = Outbox.open(tmp_path, "s", "sqlite://")
    outbox.metrics("r", {"x": 1.0}, 1, 1)
    with open(outbox.path, "ab") as file:
        file.write(b'{"run": "r", "metr')
    outbox.metrics("r", {"x": 2.0}, 2, 2)
    assert [entry.step for entry, _ in outbox.unsent() if isinstance(entry, MetricsEntry)] == [1, 2]


def _sync(place: Place, code: int = 0) -> dict[str, int]:
    command = [sys.executable, "-m", "conclave", "sync", "--home", "home", "--json"]
    found = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == code, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    return json.loads(found.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _wait_for(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, 240, pause=0.1), "it never came"
