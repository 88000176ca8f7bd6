"""What the fault tests share: the real command in its own process, and the undisturbed sweep to compare with."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from workers.tracking import Tracking

TEAM = """\
version: 1
name: tiny
data: {dataset: digits, folds: 0}
train: {epochs: 3, batch_size: 64, schedule: one_cycle}
defaults: {width: 4, optimizer: {kind: sgd, lr: 0.05}, augment: [crop]}
fusion: [vote]
members:
  - {name: a}
  - {name: b, seed: 5}
"""
# Runs one job as a trainer would, and prints what it gave.
FIT = """
import json, sys
from pathlib import Path
from orchestrator import config, plan
from workers import data
from workers.work import Progress, work

team = config.load(Path("team.yaml"))
home = Path("home")
jobs = plan.make(team, data.pack(team.data, home), home).jobs
job = next(j for j in jobs if j.member.name == sys.argv[1])
folder = home / "jobs" / job.signature
folder.mkdir(parents=True, exist_ok=True)
(folder / "member.txt").write_text(job.member.name)
progress = Progress()
print(json.dumps({**work(job, None, None, progress), "notes": progress.notes}))
"""
TIMED = ("seconds", "train/images_per_second", "train_seconds")


@cache
def _schema() -> Path:
    """An MLflow database without a run: making one takes longer than most of these sweeps."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert Tracking(f"sqlite:///{folder}/mlflow.db").client.search_experiments()
    connection = sqlite3.connect(folder / "mlflow.db")
    connection.execute("DELETE FROM experiments")  # its artifact location is of this folder
    connection.commit()
    connection.close()
    return folder / "mlflow.db"


@dataclass
class Place:
    """A folder with a team file and a home, and the processes that were started there."""

    folder: Path
    text: str = TEAM
    process: subprocess.Popen[str] | None = None
    prepared: bool = True

    def __post_init__(self) -> None:
        (self.folder / "faults").mkdir(parents=True)
        self.write(self.text)

    def write(self, text: str) -> None:
        (self.folder / "team.yaml").write_text(text)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def env(self, fault: str = "", once: bool = True, **more: str) -> dict[str, str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **more}
        if fault:
            env |= {"CONCLAVE_FAULT": fault, **({"CONCLAVE_FAULT_DIR": str(self.folder / "faults")} if once else {})}
        return env

    def fit(self, member: str = "a", code: int = 0, fault: str = "") -> dict[str, Any]:
        """One job of the team in a process of its own, without tracking and fusing; gives the manifest or the error."""
        command = [sys.executable, "-c", FIT, member]
        found = subprocess.run(
            command, cwd=self.folder, env=self.env(fault), capture_output=True, text=True, timeout=120, check=False
        )
        assert found.returncode == code, found.stdout + found.stderr
        return json.loads(found.stdout.splitlines()[-1]) if code == 0 else {}  # type: ignore[no-any-return]

    def job(self, member: str = "a") -> Path:
        """The folder of a member's full fit."""
        return next(p.parent for p in self.home.glob("jobs/*/member.txt") if p.read_text() == member)

    def start(self, *arguments: str, **env: Any) -> subprocess.Popen[str]:
        """`conclave sweep` in a session of its own, its output in out.txt and err.txt."""
        if self.prepared and not self.home.exists():
            self.home.mkdir()
            shutil.copyfile(_schema(), self.home / "mlflow.db")
        command = [sys.executable, "-m", "orchestrator", "sweep", "team.yaml", "--home", "home", "--json", *arguments]
        with open(self.folder / "out.txt", "w") as out, open(self.folder / "err.txt", "w") as err:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.env(**env), stdout=out, stderr=err, text=True, start_new_session=True
            )
        return self.process

    def sweep(self, *arguments: str, code: int = 0, **env: Any) -> dict[str, Any]:
        """The whole command; gives its summary ({} where it printed none)."""
        self.prepared = code != 2  # what is refused must find no home, and leave none
        process = self.start(*arguments, **env)
        assert process.wait(timeout=240) == code, self.said()
        assert "Traceback" not in self.said()
        out = (self.folder / "out.txt").read_text().splitlines()
        return json.loads(out[-1]) if out else {}  # type: ignore[no-any-return]

    def said(self) -> str:
        return (self.folder / "err.txt").read_text()

    def happened(self) -> list[str]:
        """The faults that happened."""
        return sorted(p.name for p in (self.folder / "faults").iterdir())

    def wait_for(self, text: str, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while text not in self.said():
            assert time.monotonic() < until, f"never said {text!r}:\n{self.said()}"
            time.sleep(0.1)

    def trainer(self) -> int:
        """The process id of a trainer actor."""
        assert self.process
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "ray::TrainerActor" in " ".join(child.cmdline()):
                        return child.pid
            time.sleep(0.05)
        raise AssertionError("no trainer was seen")

    def watch(self) -> list[psutil.Process]:
        """Every process that the running sweep consists of."""
        assert self.process
        driver = psutil.Process(self.process.pid)
        return [driver, *driver.children(recursive=True)]

    def fits(self) -> dict[str, Path]:
        """The job folders, by member."""
        state = json.loads((self.home / "sweeps/tiny/sweep.json").read_text())
        return {name: self.home / "jobs" / signatures[0] for name, signatures in state["members"].items()}

    def checkpoints(self, member: str) -> list[Path]:
        return sorted((self.fits()[member] / "checkpoint").glob("[0-9]*"))


def left(processes: list[psutil.Process], seconds: float = 10) -> list[str]:
    """The command lines of those that are still alive after so many seconds."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [" ".join(p.cmdline()) for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def weights(summary: dict[str, Any]) -> dict[str, str | None]:
    return {name: member["weights_sha256"] for name, member in summary["members"].items()}


def points(summary: dict[str, Any]) -> dict[str, dict[tuple[str, int], float]]:
    """Every metric point of each member's run, timings left out. Fails where a (key, step) is there twice."""
    client = Tracking(summary["tracking_uri"]).client
    experiment = client.get_run(summary["parent_run_id"]).info.experiment_id
    found: dict[str, dict[tuple[str, int], float]] = {}
    for run in client.search_runs([experiment], "tags.role = 'member'"):
        if run.data.tags["state"] == "restarted":
            continue
        history = [p for key in run.data.metrics for p in client.get_metric_history(run.info.run_id, key)]
        twice = [at for at, n in Counter((p.key, p.step) for p in history).items() if n > 1]
        assert not twice, twice
        found[run.data.tags["member"]] = {(p.key, p.step): p.value for p in history if p.key not in TIMED}
    return found


def equal(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    """Two manifests of a fit: bit-identical weights, the same history."""
    assert ours["weights_sha256"] == reference["weights_sha256"]
    told = [[{k: v for k, v in e.items() if k not in (*TIMED, "time")} for e in m["history"]] for m in (ours, reference)]
    assert told[0] == told[1]


def same(ours: dict[str, Any], reference: dict[str, Any], members: tuple[str, ...] = ("a", "b")) -> None:
    """Bit-identical weights, and the same metric points, each once."""
    assert ours["state"] == "done"
    for name in members:
        assert weights(ours)[name] == weights(reference)[name]
        assert points(ours)[name] == points(reference)[name]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of the same sweep without a fault."""
    return Place(tmp_path_factory.mktemp("undisturbed") / "p").sweep("--inline")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The manifest of `a`, trained without a fault."""
    return Place(tmp_path_factory.mktemp("whole") / "p").fit()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "p")
    yield made
    _end(made)


@pytest.fixture
def place_of(tmp_path: Path) -> Iterator[Callable[[str], Place]]:
    """Places with a team file of their own."""
    made: list[Place] = []

    def make(text: str) -> Place:
        made.append(Place(tmp_path / f"p{len(made)}", text))
        return made[-1]

    yield make
    for one in made:
        _end(one)


def _end(place: Place) -> None:
    """End what a test left behind, by process id."""
    if place.process and place.process.poll() is None:
        for process in place.watch():
            with contextlib.suppress(psutil.Error):
                process.kill()
