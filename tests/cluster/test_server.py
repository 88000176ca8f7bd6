"""The team's tracking server on PostgreSQL: behind a password, artifacts through it, eight members at once."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from orchestrator.tracking.server import PASSWORD, Server
from orchestrator.tracking.server_auth import find_locations
from tests.cluster.postgres import MISSING, Postgres, available
from tests.factories import AWS, TEAM, read
from workers.diagnostics.waiting import wait_until
from workers.errors import UserInputError
from workers.tracking.client import TrackingClient
from workers.tracking.job_run import Sender
from workers.tracking.outbox import Outbox

WRITERS, STEPS = 8, 40
COMMAND = (sys.executable, "-m", "conclave", "server")


@dataclass
class Running:
    uri: str
    home: Path
    password: str
    database: str

    @property
    def env(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": self.password}

    @property
    def authorization(self) -> str:
        return "Basic " + base64.b64encode(f"admin:{self.password}".encode()).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if not available():
        pytest.skip(MISSING)
    postgres, home, password = Postgres(), tmp_path_factory.mktemp("server") / "home", secrets.token_hex(12)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = home.parent / "log"
    with open(log, "wb") as told:
        process = subprocess.Popen(
            [*COMMAND, "--home", str(home), "--port", str(port)],
            env={**os.environ, PASSWORD: password, "CONCLAVE_DATABASE": postgres.uri},
            stdout=told, stderr=told, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        yield Running(f"http://127.0.0.1:{port}", home, password, postgres.uri)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        postgres.end()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_gets_in_without_the_password_or_by_another_name(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    experiments = f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    assert _status(experiments) == 401
    assert _status(f"{server.uri}/api/2.0/mlflow-artifacts/artifacts") == 401
    assert _status(experiments, Host="evil.example") == 403
    for path in (server.home / "server-secret", server.home / "server-auth.ini"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, "the database's password is in it"
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    assert [e.name for e in TrackingClient(server.uri).client.search_experiments()] == ["Default"]


def test_no_client_reads_the_server_s_files(server: Running) -> None:
    for location in ("file:///etc", "/etc", "s3://other/place"):
        for version in ("/api/2.0", "/ajax-api/2.0"):
            body = json.dumps({"name": f"thief{location}{version}", "artifact_location": location}).encode()
            headers = {"Authorization": server.authorization, "Content-Type": "application/json"}
            asked = urllib.request.Request(f"{server.uri}{version}/mlflow/experiments/create", body, headers)
            with pytest.raises(urllib.error.HTTPError, match="400") as refused:
                urllib.request.urlopen(asked, timeout=10)
            assert "Leave it out." in json.loads(refused.value.read())["message"]


def _write(home: str, uri: str, run: str, writer: int, env: dict[str, str]) -> None:
    os.environ.update(env)
    artifact = Path(home) / f"fit{writer}"
    artifact.mkdir()
    (artifact / "weights").write_bytes(bytes([writer]) * 100_000)
    outbox = Outbox.open(Path(home), f"w{writer}", uri)
    sender = Sender([outbox])
    sender.start()
    for step in range(STEPS):
        outbox.metrics(run, {f"m{writer}": step / 7}, step, 1000 + step)
        sender.wake.set()
    outbox.artifact(run, artifact, f"fit{writer}")
    sender.close(120)


def test_eight_members_write_at_once_and_nothing_is_lost(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    tracking = TrackingClient(server.uri)
    run = tracking.create_run(tracking.experiment("team", None), "r", {})
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path), server.uri, run, i, server.env)) for i in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(200)
    assert [outbox.unsent() for outbox in Outbox.all_in_home(tmp_path)] == [[]] * WRITERS
    for i in range(WRITERS):
        assert [(p.step, p.value) for p in tracking.client.get_metric_history(run, f"m{i}")] == [(s, s / 7) for s in range(STEPS)]
        found = tracking.download(run, f"fit{i}")
        assert found
        assert (found / "weights").read_bytes() == bytes([i]) * 100_000


def test_no_secret_is_on_a_command_line_that_all_can_read(server: Running) -> None:
    words = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()]
    assert any(str(server.home) in word for word in words), "the server is among them"
    assert not any(server.database in word for word in words)


def test_another_database_has_no_admin_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda program, words, env: became.append([*words, env["MLFLOW_BACKEND_STORE_URI"]]))
    monkeypatch.setenv(PASSWORD, "x" * 16)
    Server(tmp_path, "127.0.0.1", 5000, "postgresql://one").start()
    monkeypatch.delenv(PASSWORD)
    Server(tmp_path, "127.0.0.1", 5000, "postgresql://one").start()
    with pytest.raises(UserInputError, match=PASSWORD):
        Server(tmp_path, "127.0.0.1", 5000, "postgresql://other").start()
    monkeypatch.setenv(PASSWORD, "x" * 16)
    Server(tmp_path, "127.0.0.1", 5000, "postgresql://other").start()
    assert [words[-1] for words in became] == ["postgresql://one", "postgresql://one", "postgresql://other"]
    assert "postgresql://other" in (tmp_path / "server-auth.ini").read_text()


def _end(port: int) -> None:
    """Send SIGTERM to a server that was started in the background."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "server" in words and str(port) in words:
            process.terminate()


def test_the_head_s_own_line_starts_a_server_that_a_second_start_finds_again(tmp_path: Path) -> None:
    """As `cluster.yaml` says it, with other folders and another port. A sweep tracks there."""
    shared, password = tmp_path / "shared", secrets.token_hex(12)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "tracking_password").write_text(password)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    [line] = [command for command in read(AWS)["head_start_ray_commands"] if "conclave server" in command]
    line = line.replace("/mnt/conclave", str(shared)).replace(":5000", f":{port} --port {port}")
    shared.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "HOME": str(tmp_path), "PATH": path}
    uri = f"http://127.0.0.1:{port}"
    client = {"CONCLAVE_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
    try:
        for home in ("first", "second"):
            subprocess.run(["bash", "-c", line], env=env, check=True, timeout=600, capture_output=True)
            assert _status(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1") == 401
            (tmp_path / "team.yaml").write_text(TEAM.replace("folds: 2", "folds: 0"))
            words = [sys.executable, "-m", "conclave", "sweep", "team.yaml", "--inline", "--json", "--home", home]
            done = subprocess.run(words, env={**env, **client}, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            summary = json.loads(done.stdout)
            assert (summary["tracking_uri"], summary["unsent"]) == (uri, 0)
            _end(port)
            assert wait_until(lambda: not _answers(f"{uri}/health"), 60)
        assert summary["reused"] == 2, "the second start has the first one's runs and trainings"
        assert list((shared / "artifacts").rglob("fused.onnx"))
    finally:
        _end(port)


@pytest.mark.parametrize(("cores", "workers"), [(1, "1"), (2, "2"), (64, "4")])
def test_a_server_has_a_worker_a_core_and_at_most_four(
    cores: int, workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tracking.server.available_cores", lambda: cores)
    words = Server(tmp_path, "127.0.0.1", 5000, None).command()
    assert words[words.index("--workers") + 1] == workers


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"name": "x", "artifact_location": "file:///etc"}, ["file:///etc"]),
        ({"name": "x", "artifactLocation": "file:///etc"}, ["file:///etc"]),
        ('{"name": "x", "artifact_location": "/etc"}', ["/etc"]),
        ({"name": "x", "artifact_location": ""}, []),
        ({"name": '{"artifact_location": "a name"}'}, []),
        ({"name": "x", "tags": [{"key": "mlflow.artifactLocation", "value": "/etc"}]}, ["/etc"]),
        ({"trace": {"trace_info": {"tags": {"mlflow.artifactLocation": "file:/etc"}}}}, ["file:/etc"]),
        ({"run_id": "x", "metrics": [{"key": "loss", "value": 0.1}]}, []),
        (None, []),
    ],
)
def test_artifact_locations_in_the_body_of_a_request(body: object, found: list[str]) -> None:
    assert list(find_locations(body)) == found


@pytest.mark.parametrize("password", [None, "short"])
def test_a_first_start_without_a_real_password_is_refused(password: str | None, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_AUTH_ADMIN_PASSWORD"}
    if password:
        env["MLFLOW_AUTH_ADMIN_PASSWORD"] = password
    found = subprocess.run(
        [*COMMAND, "--home", str(tmp_path / "home")], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 2
    assert "MLFLOW_AUTH_ADMIN_PASSWORD: set it" in found.stderr
    assert not (tmp_path / "home").exists()
