"""`sweep --on`: the launcher is a stand-in, the head, its job server, the token and the sweep are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import team_commands
from orchestrator.cluster import ray_jobs as remote
from orchestrator.cluster.launcher import Cluster
from orchestrator.config import loader as config
from orchestrator.home import Home
from tests.cluster.on import FAKE
from tests.factories import AWS, OWN, ROOT, TEAM
from tests.faults.nodes import Nodes
from workers.errors import ConclaveError, UserInputError


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "token"
    path.write_text("t" * 64)
    path.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    return path


@pytest.fixture
def cluster(tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    path = tmp_path / "cluster.yaml"
    text = OWN.read_text().replace("192.0.2.", "10.0.0.").replace("ghcr.io/conclave-ensembles/", "registry.example/")
    password = tmp_path / "tracking_password"
    path.write_text(text.replace("~/.ray/tracking_password\n\n", f"{password}\n\n"))
    password.write_text("p" * 32)
    password.chmod(0o600)
    monkeypatch.setenv("FAKE_RAY_LOG", str(tmp_path / "log"))
    read = Cluster.ready(path)
    return Cluster(read.path, read.config, FAKE)


def told(tmp_path: Path) -> list[str]:
    return [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]


@pytest.mark.parametrize("path", [AWS, OWN], ids=lambda path: path.name)
def test_a_file_that_was_not_edited_is_refused_with_its_line(path: Path, token: Path) -> None:
    with pytest.raises(UserInputError, match=r":\d+: .* is a placeholder"):
        Cluster.ready(path)


def test_a_token_that_is_not_there_or_that_others_can_read_is_refused(cluster: Cluster, token: Path) -> None:
    token.chmod(0o644)
    with pytest.raises(UserInputError, match="chmod 600"):
        Cluster.ready(cluster.path)
    token.unlink()
    with pytest.raises(UserInputError, match="get-auth-token"):
        Cluster.ready(cluster.path)


def test_a_tracking_password_that_is_not_there_or_that_others_can_read_is_refused(cluster: Cluster) -> None:
    password = cluster.path.with_name("tracking_password")
    password.chmod(0o640)
    with pytest.raises(UserInputError, match="chmod 600"):
        Cluster.ready(cluster.path)
    password.unlink()
    with pytest.raises(UserInputError, match="openssl rand"):
        Cluster.ready(cluster.path)


def test_the_way_to_the_ui_is_the_head_s_server_where_it_has_one(cluster: Cluster) -> None:
    assert cluster.serves
    assert cluster.ui_command("/runs") == f'ray exec {cluster.path} "echo sign in as admin; sleep infinity" --port-forward 5000'
    none = Cluster(cluster.path, {**cluster.config, "head_start_ray_commands": ["ray stop"]})
    assert "conclave ui --home /runs" in none.ui_command("/runs")


def test_a_team_file_is_no_cluster_file(tmp_path: Path, token: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM)
    with pytest.raises(UserInputError, match="cluster_name and provider are needed"):
        Cluster.ready(tmp_path / "team.yaml")


@pytest.mark.parametrize(
    "keys", [{"down": True}, {"on": AWS, "inline": True}, {"on": AWS, "address": "h:1"}, {"on": AWS, "as_json": True}]
)
def test_options_that_mean_nothing_together_are_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"--on|--down"):
        team_commands.sweep(tmp_path / "team.yaml", **keys)


@pytest.mark.parametrize(
    ("text", "restart", "expected"),
    [
        ("name: t\nsede: 1\nmembers: [{name: a}]\n", (), "did you mean seed"),
        (TEAM, ("nobody",), "no such member"),
        (TEAM.replace("{name: a}", "{name: a, weights: /somewhere/w.pt}"), (), "lies outside"),
        (TEAM.replace("{name: a}", "{name: a, weights: w.pt}"), (), "is not there"),
    ],
    ids=["team", "restart", "weights outside", "no weights"],
)
def test_what_is_wrong_here_starts_and_ends_no_machine(
    text: str, restart: tuple[str, ...], expected: str, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "team.yaml").write_text(text)
    ended: list[str] = []
    with pytest.raises(UserInputError, match=expected):
        remote.sweep_on_cluster(
            tmp_path / "team.yaml", remote.RemoteSweep(cluster, Home(tmp_path), print, restart=restart), lambda: ended.append("")
        )
    assert not (tmp_path / "log").exists()
    assert not ended


def test_machines_that_could_not_start_are_ended_all_the_same(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of them may run."""
    monkeypatch.setenv("FAKE_RAY_FAILS", "up")
    (tmp_path / "team.yaml").write_text(TEAM)
    with pytest.raises(ConclaveError, match=r"ray up .* failed"):
        remote.sweep_on_cluster(tmp_path / "team.yaml", remote.RemoteSweep(cluster, Home(tmp_path), print), cluster.down)
    assert told(tmp_path) == ["up", "down"]


def test_without_a_terminal_down_wants_a_yes(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="say --yes too"):
        team_commands.sweep(tmp_path / "team.yaml", on=cluster.path, down=True)


@pytest.mark.parametrize("types", ["[]", "{a: }", "{a: {resources: 4}}"])
def test_machine_types_of_another_shape_are_refused(types: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"cluster_name: c\nprovider: {{type: aws}}\navailable_node_types: {types}\n")
    with pytest.raises(UserInputError, match="available_node_types: a name for each type"):
        Cluster.read(tmp_path / "c.yaml")


def test_what_the_launcher_could_not_do_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RAY_FAILS", "up")
    with pytest.raises(ConclaveError, match=r"ray up .* failed"):
        cluster.up()


def test_a_user_s_own_modules_and_weights_travel_and_nothing_else(tmp_path: Path) -> None:
    files = {"net.py", "package/__init__.py", "package/deep/net.py", "weights/start.safetensors", "split.csv", "names.txt"}
    for name in (*files, "data/huge.bin"):
        path = tmp_path / "team" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    text = TEAM.replace("{name: a}", "{name: a, arch: package.deep.net:Net, weights: weights/start.safetensors}")
    text = text.replace("folds: 2", "folds: 2, split: split.csv, classes: names.txt")
    team_file = tmp_path / "team" / "team.yaml"
    team_file.write_text(text)
    remote.bundle_team(config.load_team(team_file), team_file, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"team.yaml", *files}


def test_a_head_that_has_just_started_is_asked_again_and_one_that_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [f"Request failed with status code 500: {remote.NOT_READY} to submit job", "", "status code 403: no"]

    class Client:
        def __init__(self, address: str) -> None: ...

        def submit_job(self, **asked: Any) -> str:
            if answer := answers.pop(0):
                raise RuntimeError(answer)
            return "job-1"

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", Client)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert remote._Job.submit("http://h", "conclave", tmp_path, {}).name == "job-1"
    with pytest.raises(ConclaveError, match=r"took no job: status code 403: no$"):
        remote._Job.submit("http://h", "conclave", tmp_path, {})
    monkeypatch.setattr(remote, "READY_SECONDS", 0.0)
    answers[:] = [remote.NOT_READY]
    with pytest.raises(ConclaveError, match="port 52365"):
        remote._Job.submit("http://h", "conclave", tmp_path, {})


def test_a_stopped_job_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.job_submission import JobStatus

    asked: list[object] = []
    answers = [JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.STOPPED, JobStatus.STOPPED]

    class Client:
        def stop_job(self, name: str) -> None:
            asked.append("stop")

        def get_job_status(self, name: str) -> JobStatus:
            asked.append(answers.pop(0))
            return asked[-1]  # type: ignore[return-value]

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    remote._Job(Client(), "job-1").stop()
    assert asked == ["stop", JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.STOPPED]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head of two cores with jobs; `conclave` is on its path, as in the image."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    made = Nodes({"PATH": path}, dashboard=True, cpus=2)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(made.token))
    monkeypatch.setenv("FAKE_RAY_DASHBOARD", str(made.dashboard_port))
    yield made
    made.end()


def test_a_sweep_runs_as_a_job_on_the_head_and_comes_back(cluster: Cluster, head: Nodes, tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM.replace("folds: 2", "folds: 0"))
    done = _on(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a: started" in done.stdout
    assert "--port-forward 5000, then http://127.0.0.1:5000" in done.stdout
    fetched = tmp_path / "here" / "sweeps" / "tiny"
    assert (fetched / "fused.onnx").read_bytes() == (tmp_path / "there/sweeps/tiny/fused.onnx").read_bytes()
    assert (fetched / "report.html").is_file()
    assert told(tmp_path) == ["up", "dashboard", "rsync-down"]
    (tmp_path / "team.yaml").write_text("name: t\nsede: 1\nmembers: [{name: a}]\n")
    refused = _on(tmp_path)
    assert (refused.returncode, "did you mean seed" in refused.stderr) == (2, True)
    assert told(tmp_path)[-1] == "rsync-down", "refused before any machine was asked for"
    _without_the_token(head, tmp_path)


def test_ctrl_c_here_stops_the_sweep_there_which_goes_on_later(cluster: Cluster, head: Nodes, tmp_path: Path) -> None:
    """It has the time that it needs: checkpoints are written, and its runs are not left running."""
    text = TEAM.replace("folds: 2", "folds: 0")
    (tmp_path / "team.yaml").write_text(text.replace("epochs: 2", "epochs: 400"))
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(_words(tmp_path), env=_env(), cwd=tmp_path, stdout=said, stderr=said)
        until = time.monotonic() + 300
        while ": epoch" not in (tmp_path / "said").read_text():
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < until, (tmp_path / "said").read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, (tmp_path / "said").read_text()
    assert "stopping the sweep on the cluster" in (tmp_path / "said").read_text()
    summary = json.loads((tmp_path / "there/sweeps/tiny/summary.json").read_text())
    assert summary["state"] == "interrupted"
    assert [p for p in (tmp_path / "there").glob("jobs/*/checkpoint/*") if not p.name.endswith("-00000000")], "between two steps"
    assert told(tmp_path) == ["up", "dashboard"], "nothing was fetched, and no machine ended unasked"


def _words(folder: Path) -> list[str]:
    paths = [str(folder / name) for name in ("team.yaml", "cluster.yaml", "here", "there")]
    return [sys.executable, "-m", "tests.cluster.on", *paths]


def _env() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}


def _on(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_words(folder), env=_env(), cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def _without_the_token(head: Nodes, tmp_path: Path) -> None:
    """The job server lets nobody in who has another one."""
    other = tmp_path / "other"
    other.write_text("x" * 64)
    other.chmod(0o600)
    words = [sys.executable, "-m", "ray.scripts.scripts", "job", "list", "--address", f"http://127.0.0.1:{head.dashboard_port}"]
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(other)}
    found = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "auth" in (found.stdout + found.stderr).lower()
