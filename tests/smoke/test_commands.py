"""The main job, and every command once, by the command line that people use. `make test` runs these."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from orchestrator.cli.entry import app
from tests.factories import ROOT, TEAM, picture
from tests.faults.place import SMALL

COMMANDS = tuple(sorted(get_command(app).commands))  # type: ignore[attr-defined]
SMALL_TEAM = TEAM.replace("width: 4", 'arch: "small:Small"')  # exported in a second; `make demo` sweeps ResNets
SWEEP = ("sweep", "team.yaml", "--home", "home", "--json")


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CONCLAVE_FAULT_DIR": str(folder / "faults"), **more}


def conclave(*arguments: str, folder: Path, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "conclave", *arguments]
    done = subprocess.run(words, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def write_team(folder: Path) -> None:
    (folder / "team.yaml").write_text(SMALL_TEAM)
    (folder / "small.py").write_text(SMALL)


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a team file and its finished sweep, run on Ray actors without any fault."""
    folder = tmp_path_factory.mktemp("swept")
    write_team(folder)
    (folder / "photo.png").write_bytes(picture(1))
    conclave(*SWEEP, folder=folder)
    return folder


def test_a_sweep_trains_fuses_and_exports_and_a_second_one_trains_nothing(swept: Path) -> None:
    first = json.loads((swept / "home/sweeps/tiny/summary.json").read_text())
    assert (first["state"], first["trained"]) == ("done", 6), "two members, each with one full and two fold trainings"
    assert Path(first["model"]).is_file()
    assert set(first["fusions"]) == {"vote", "weighted", "stack", "concat"}
    again = summary(conclave(*SWEEP, folder=swept))
    assert (again["trained"], again["reused"]) == (0, 6)
    assert again["members"] == first["members"]


def test_a_sweep_survives_a_killed_trainer_and_a_killed_driver(swept: Path, tmp_path: Path) -> None:
    """A trainer is killed in the middle of an epoch, and later the driver. The weights are those of the undisturbed sweep."""
    write_team(tmp_path)
    words = [sys.executable, "-m", "conclave", *SWEEP]
    (tmp_path / "faults").mkdir()
    faults = environment(tmp_path, CONCLAVE_FAULT="fit.step@a:30:kill")
    with (tmp_path / "driver.log").open("w") as log:
        driver = subprocess.Popen(words, cwd=tmp_path, env=faults, stdout=log, stderr=log)
        until = time.monotonic() + 240
        while driver.poll() is None and time.monotonic() < until:
            if list(tmp_path.glob("home/jobs/*/fit/manifest.json")) and list((tmp_path / "faults").iterdir()):
                break
            time.sleep(0.2)
        driver.kill()
        driver.wait()
    assert list((tmp_path / "faults").iterdir()), "the trainer of `a` was not killed"
    resumed = summary(conclave(*SWEEP, folder=tmp_path))
    assert resumed["state"] == "done"
    assert resumed["reused"] >= 1, "what was finished before the driver died was trained again"
    undisturbed = json.loads((swept / "home/sweeps/tiny/summary.json").read_text())
    for name, member in undisturbed["members"].items():
        assert resumed["members"][name]["weights_sha256"] == member["weights_sha256"], name


# Arguments of each command, its exit code, and a part of what it says.
EXAMPLES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "init": (("new.yaml",), 0, "new.yaml is written"),
    "validate": (("team.yaml",), 0, "tiny"),
    "schema": ((), 0, "TeamFile"),
    "plan": (("team.yaml", "--home", "home"), 0, "6 jobs, 6 done. Time: nothing to do."),
    "data": (("team.yaml", "--home", "home"), 0, "tiny-data.svg is written"),
    "split": (("team.yaml", "--home", "home"), 0, "split.csv is written: fit "),
    "sweep": (("team.yaml", "--home", "home"), 0, "vote"),
    "status": (("--home", "home"), 0, "tiny"),
    "report": (("tiny", "--home", "home"), 0, "report.html"),
    "fuse": (("tiny", "--home", "home", "--method", "vote"), 0, "vote"),
    "export": (("tiny", "--home", "home", "--method", "vote", "--out", "vote.onnx"), 0, "vote.onnx"),
    "labels": (("tiny", "--home", "home", "--csv", "suspects.csv", "--spreadsheet"), 0, "suspects.csv is written"),
    "predict": (("home/sweeps/tiny/fused.onnx", "photo.png"), 0, "photo.png,"),
    "sync": (("--home", "home"), 0, "0 entries sent, 0 left."),
    "doctor": ((), 0, "PyTorch"),
    "up": ((str(ROOT / "cluster.yaml"),), 2, "EDIT"),
    "down": ((str(ROOT / "cluster.yaml"),), 2, "EDIT"),
    "attach": ((str(ROOT / "cluster.yaml"),), 2, "EDIT"),
}
SERVERS = ("ui", "server")


def test_no_command_is_forgotten_here() -> None:
    assert sorted([*EXAMPLES, *SERVERS]) == list(COMMANDS)


@pytest.mark.parametrize("command", EXAMPLES)
def test_a_command_does_what_its_example_says(command: str, swept: Path) -> None:
    arguments, code, expected = EXAMPLES[command]
    done = conclave(command, *arguments, folder=swept, code=code)
    assert expected in done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_an_example_of_it(command: str) -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "conclave", command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert f"Example: conclave {command}" in help_text


@pytest.fixture
def port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def ui(swept: Path, port: int) -> Iterator[str]:
    words = [sys.executable, "-m", "conclave", "ui", "--home", "home", "--port", str(port)]
    with (swept / "ui.log").open("w") as log:
        process = subprocess.Popen(words, cwd=swept, env=environment(swept), stdout=log, stderr=log, start_new_session=True)
        yield f"http://127.0.0.1:{port}"
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_the_ui_shows_the_runs_through_a_tunnel_too_and_by_no_foreign_name(ui: str) -> None:
    """`ssh -L 9000:127.0.0.1:5000`: the browser asks for localhost:9000."""
    until = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(ui, timeout=5) as answer:
                assert b"MLflow" in answer.read()
                break
        except OSError:
            assert time.monotonic() < until, "the UI did not answer within two minutes"
            time.sleep(0.5)
    for host, expected in (("localhost:9000", 200), ("127.0.0.1:81", 200), ("evil.example", 403)):
        try:
            status = urllib.request.urlopen(urllib.request.Request(ui, headers={"Host": host}), timeout=30).status
        except urllib.error.HTTPError as error:
            status = error.code
        assert status == expected, host


def test_the_server_asks_for_a_password_first(tmp_path: Path) -> None:
    done = conclave("server", "--home", "home", folder=tmp_path, code=2, MLFLOW_AUTH_ADMIN_PASSWORD="")
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in done.stderr
    assert not (tmp_path / "home").exists(), "a refused command leaves the disk as it was"


def test_predictions_are_probabilities(swept: Path) -> None:
    lines = conclave("predict", "home/sweeps/tiny/fused.onnx", "photo.png", folder=swept).stdout.splitlines()
    rows = [line.split(",") for line in lines if line.startswith("photo.png")]
    assert rows
    assert all(0 <= float(row[2]) <= 1 for row in rows)
    assert sum(float(row[2]) for row in rows) == pytest.approx(1, abs=1e-5)


def test_predictions_of_no_image_leave_no_file(swept: Path) -> None:
    (swept / "page.png").write_text("<html></html>")
    done = conclave("predict", "home/sweeps/tiny/fused.onnx", "page.png", "--out", "guesses.csv", folder=swept, code=2)
    assert "no image was read" in done.stderr
    assert not (swept / "guesses.csv").exists()


@pytest.mark.parametrize("words", [("ui",), ("server",), ("server", "--background")])
def test_a_port_that_another_program_uses_is_refused_at_once(words: tuple[str, ...], tmp_path: Path) -> None:
    """The foreign program answers, and is not taken for our own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mlflow.db").touch()
    before = sorted(tmp_path.rglob("*"))
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        for port, why in (
            (other.server_port, "another program uses this port of 127.0.0.1"),
            (80000, "'--port': Input should be less than or equal to 65535"),
        ):
            command = [sys.executable, "-m", "conclave", *words, "--home", "home", "--port", str(port)]
            env = {**os.environ, "MLFLOW_AUTH_ADMIN_PASSWORD": "a long password"}
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            assert why in done.stderr
            assert "Traceback" not in done.stderr
        other.shutdown()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_limit_of_cores_holds_for_ray_and_for_what_it_starts() -> None:
    code = (
        "from workers.diagnostics.cores import available_cores, limit_cores; import subprocess, sys\n"
        "limit_cores(1); print(available_cores())\n"
        "print(subprocess.check_output([sys.executable, '-c', "
        "'from workers.diagnostics.cores import available_cores as n; print(n())'], text=True))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert said == ["1", "1"]
