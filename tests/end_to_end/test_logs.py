"""Nobody sees a traceback unless they ask for it, and none is lost: it is in a log, whose path is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.execution.executor import Event
from orchestrator.execution.job_logs import JobLogs
from tests.factories import TEAM, job
from workers.diagnostics import logs

NETWORK = """\
from torch import Tensor, nn


class Fussy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise ArithmeticError("this network will never be trained")
        return x


class Net(nn.Sequential):
    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__(nn.Flatten(), Fussy(), nn.Linear(3 * image_size**2, num_classes))
"""
FAILING = (
    TEAM.replace("folds: 2", "folds: 0").replace("{name: b, seed: 5}", '{name: b, arch: "own:Net"}') + "quorum: 1\nretries: 0\n"
)


def conclave(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conclave", *words]
    env = {**os.environ, "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def sweep(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return conclave(folder, *words, "sweep", "team.yaml", "--home", "home", "--inline", **more)


def test_a_failing_job_has_its_traceback_in_a_log_of_its_own_and_the_screen_says_where(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(NETWORK)
    (tmp_path / "team.yaml").write_text(FAILING)
    done = sweep(tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr + done.stdout
    log = "home/sweeps/tiny/logs/b.log"
    [failed] = [line for line in done.stderr.splitlines() if line.startswith("b: failed")]
    assert failed.endswith(f"this network will never be trained; log: {log}")
    assert f"this network will never be trained; log: {log}" in done.stdout, "in the table's lines too"
    text = (tmp_path / log).read_text()
    assert 'raise ArithmeticError("this network will never be trained")' in text
    assert "epoch 2" in (tmp_path / "home/sweeps/tiny/logs/a.log").read_text()
    driver = (tmp_path / "home/sweeps/tiny/logs/driver.log").read_text()
    assert "2 trainings, 2 of them to do" in driver
    assert "b: failed" in driver

    asked = sweep(tmp_path, "--debug")
    assert "Traceback" in asked.stderr


def test_what_nobody_expected_is_a_sentence_with_the_path_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM.replace("folds: 2", "folds: 0") + "fusion: [vote]\n")
    done = sweep(tmp_path, CONCLAVE_FAULT="fusion.fit:1:raise")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("conclave: something unexpected happened (InjectedFaultError: injected at fusion.fit).")
    assert last.endswith("home/sweeps/tiny/logs/driver.log")
    assert "Traceback" in (tmp_path / last.rpartition(" ")[2]).read_text()
    assert "Traceback" in sweep(tmp_path, "--debug", CONCLAVE_FAULT="fusion.fit:1:raise").stderr


def test_outside_of_a_sweep_the_users_own_log_has_it(tmp_path: Path) -> None:
    (tmp_path / "ruamel").mkdir()  # of a broken installation
    (tmp_path / "ruamel" / "yaml.py").write_text("raise ArithmeticError('this is no YAML')")
    (tmp_path / "team.yaml").write_text(TEAM)
    done = conclave(tmp_path, "validate", "team.yaml")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    path = Path(done.stderr.strip().rpartition(" ")[2])
    assert path.is_relative_to(tmp_path / "state")
    assert "ArithmeticError: this is no YAML" in path.read_text()


def test_a_damaged_file_of_a_sweep_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "sweeps" / "tiny"
    folder.mkdir(parents=True)
    unreadable, changed = "it can't be read", "it was changed, or damaged"
    for content, said in (("{", unreadable), ("[]", changed), ('{"version": 2}', changed), ("", unreadable)):
        (folder / "sweep.json").write_text(content)
        done = conclave(tmp_path, "status", "tiny", "--home", "home")
        assert done.returncode == 1
        assert f"home/sweeps/tiny/sweep.json: {said}" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_log_rotates_and_a_full_disk_loses_messages_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LARGEST_BYTES", 500)
    heard: list[Event] = []
    follow = JobLogs(tmp_path / "logs", heard.append)
    for epoch in range(50):
        follow(Event(job("a"), "epoch", epoch, {"train/loss": 0.5}))
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["a.log", "a.log.1", "a.log.2"]
    assert all(path.stat().st_size <= 600 for path in (tmp_path / "logs").iterdir())
    (tmp_path / "taken").write_text("a file in the place of the folder")
    JobLogs(tmp_path / "taken", heard.append)(Event(job("a"), "failed", text="why", trace="Traceback"))
    assert len(heard) == 51
    assert heard[-1].text.startswith("why; log: ")


def test_who_holds_a_sweep_is_told_whatever_the_file_says(tmp_path: Path) -> None:
    from orchestrator.home import Home
    from workers.errors import UserInputError

    folder = Home(tmp_path).sweep("s")
    with folder.locked():
        for content, expected in ((folder.holder.read_text(), f"process {os.getpid()} on"), ("{", "another process")):
            folder.holder.write_text(content)
            with pytest.raises(UserInputError, match=expected), Home(tmp_path).sweep("s").locked():
                pass
