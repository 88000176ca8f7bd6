"""The real command in processes of its own, what it left behind, and how two sweeps are compared."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import multiprocessing
import os
import shutil
import signal
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
from typing import Any, Protocol

import psutil

from orchestrator.results import SweepSummary
from tests.factories import snapshot
from workers.storage.manifest import MANIFEST
from workers.storage.state_file import seal
from workers.tracking.client import TrackingClient

TEAM = """\
version: 1
name: tiny
data: {dataset: digits, folds: 0}
train: {epochs: 3, batch_size: 64, schedule: one_cycle}
defaults: {arch: "small:Small", optimizer: {kind: sgd, lr: 0.05}, augment: [crop]}
fusion: [vote]
members:
  - {name: a}
  - {name: b, seed: 5}
"""
RESNET = TEAM.replace('arch: "small:Small"', "width: 4")
# With all that a checkpoint has to keep (batch statistics, dropout), and exported in a second where a ResNet takes five.
SMALL = """\
from torch import nn


class Small(nn.Sequential):
    def __init__(self, num_classes: int, image_size: int, width: int = 8) -> None:
        parts = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1)]
        super().__init__(*parts, nn.Linear(width * (image_size // 2) ** 2, num_classes))


class Wide(Small):
    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__(num_classes, image_size, 16)
"""
KEPT = (".lock", ".holder", ".identifier", ".mlflow.db.lock")  # hidden files that stay
TIMED = ("seconds", "train/images_per_second", "train_seconds")


class Running(Protocol):
    """A process of the command, started either way."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...
    def send_signal(self, number: int) -> None: ...


@cache
def _warm() -> Any:
    """A process with the heavy packages imported, from which others are forked: a sweep without Ray starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.warm"])
    return context


@dataclass
class Forked:
    """A forked process in the manner of subprocess.Popen."""

    process: Any
    err: Path

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def poll(self) -> int | None:
        return self.process.exitcode  # type: ignore[no-any-return]

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        code = self.poll()
        if code is None:
            os.kill(self.pid, signal.SIGUSR2)  # it writes where each of its threads is
            time.sleep(1)
            raise AssertionError(f"it runs after {timeout} s:\n{self.err.read_text()}")
        return code

    def kill(self) -> None:
        self.process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _enter(folder: str, env: dict[str, str], out: str, err: str) -> None:
    """Make a forked process what a fresh one would be: session, folder, environment, output."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR2)
    from workers.training import checkpoint_policy

    checkpoint_policy.FREE_SECONDS = 60.0  # so that a busy machine writes as many checkpoints as an idle one


def _command(where: tuple[str, dict[str, str], str, str], arguments: list[str]) -> None:
    _enter(*where)
    from orchestrator import cli

    sys.argv = ["conclave", *arguments]
    cli.main()


def _one_fit(where: tuple[str, dict[str, str], str, str], member: str) -> None:
    """One job as a trainer would do it; prints what it gave."""
    _enter(*where)
    from orchestrator.config import loader as config
    from orchestrator.planning.plan import Planner
    from workers.data import packing as data
    from workers.data.splits import keep_split
    from workers.runtime.heartbeat import JobProgress
    from workers.runtime.job_runner import run_job

    team, home = config.load_team(Path("team.yaml")), Path("home")
    store = data.pack_data(team.data, home)
    keep_split(store, team.data, team.seed, home)
    plan = Planner(team, store, home, (str(Path.cwd()),)).plan()
    [planned] = plan.of_member(member)
    folder = planned.artifact.root
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "member.txt").write_text(member)
    progress = JobProgress()
    failure = run_job(planned.job, progress).failure
    told = {"error": failure.sentence, "kind": failure.kind} if failure else planned.artifact.manifest().model_dump(mode="json")
    print(json.dumps({**told, "notes": progress.notes}), flush=True)


@cache
def _schema() -> Path:
    """An MLflow database without a run: making one takes longer than most of these sweeps."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert TrackingClient(f"sqlite:///{folder}/mlflow.db").client.search_experiments()
    connection = sqlite3.connect(folder / "mlflow.db")
    connection.execute("DELETE FROM experiments")  # its artifact location is of this folder
    connection.commit()
    connection.close()
    return folder / "mlflow.db"


def prepare_home(home: Path) -> None:
    """Make a home with a tracking database without a run, where there is none."""
    if not home.exists():
        home.mkdir(parents=True)
        shutil.copyfile(_schema(), home / "mlflow.db")


@dataclass
class Place:
    """A folder with a team file and a home, and the processes that were started there."""

    folder: Path
    text: str = TEAM
    process: Running | None = None
    prepared: bool = True
    label: str = ""  # of its files, where several share a folder and a home

    def __post_init__(self) -> None:
        (self.folder / "faults").mkdir(parents=True, exist_ok=True)
        (self.folder / "small.py").write_text(SMALL)
        self.write(self.text)

    @property
    def team(self) -> Path:
        return self.folder / f"{self.label}team.yaml"

    @property
    def out(self) -> Path:
        return self.folder / f"{self.label}out.txt"

    @property
    def err(self) -> Path:
        return self.folder / f"{self.label}err.txt"

    def write(self, text: str) -> None:
        self.team.write_text(text)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def env(self, fault: str = "", once: bool = True, **more: Any) -> dict[str, str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **more}
        if fault:
            env |= {"CONCLAVE_FAULT": fault, **({"CONCLAVE_FAULT_DIR": str(self.folder / "faults")} if once else {})}
        return env

    def fit(self, member: str = "a", code: int = 0, fault: str = "") -> dict[str, Any]:
        """One job of the team in a process of its own, without tracking and fusing; gives the manifest or the error."""
        process = self._fork(_one_fit, member, self.env(fault))
        assert process.wait(timeout=300) == code, self.said()
        out = self.out.read_text().splitlines()
        return json.loads(out[-1]) if code == 0 else {}

    def job(self, member: str = "a") -> Path:
        """The folder of a member's full fit."""
        return next(p.parent for p in self.home.glob("jobs/*/member.txt") if p.read_text() == member)

    def beside(self, text: str) -> Place:
        """Another team of the same folder and home, for a command while this place's sweep runs: its output is kept apart."""
        return Place(self.folder, text, label="other-")

    def start(self, *arguments: str, **env: Any) -> Running:
        """`conclave sweep` in a session of its own, its output in out.txt and err.txt."""
        self._clear_output()
        if self.prepared:
            prepare_home(self.home)
        words = ["sweep", self.team.name, "--home", "home", "--json", *arguments]
        if "--inline" in arguments:
            self.process = self._fork(_command, words, self.env(**env))
            return self.process
        with open(self.out, "a") as out, open(self.err, "a") as err:
            command = [sys.executable, "-m", "conclave", *words]
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.env(**env), stdout=out, stderr=err, text=True, start_new_session=True
            )
        return self.process

    def _fork(self, function: Callable[..., None], argument: Any, env: dict[str, str]) -> Forked:
        self._clear_output()
        where = (str(self.folder), env, str(self.out), str(self.err))
        process = _warm().Process(target=function, args=(where, argument))
        process.start()
        return Forked(process, self.err)

    def _clear_output(self) -> None:
        """Empty the two files that a command writes to. Two commands at once would write over each other's words there."""
        assert self.process is None or self.process.poll() is not None, "this place's sweep still runs: use `beside`"
        for path in (self.out, self.err):
            path.write_text("")

    def sweep(self, *arguments: str, code: int = 0, **env: Any) -> dict[str, Any]:
        """The whole command; gives its summary ({} where it printed none)."""
        self.prepared = code != 2  # what is refused must find no home, and leave none
        process = self.start(*arguments, **env)
        try:
            assert process.wait(timeout=900) == code, self.said()
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs:\n{self.said()}") from None
        assert "Traceback" not in self.said()
        return self.printed()

    def command(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Any other command that needs no Ray; gives the JSON that it printed."""
        assert self.attempt(*words) == code, self.said()
        assert "Traceback" not in self.said()
        return self.printed() if "--json" in words else {}

    def attempt(self, *words: str) -> int:
        """Give any command that needs no Ray; return its exit code."""
        return self._fork(_command, list(words), self.env()).wait(timeout=300)

    def printed(self) -> dict[str, Any]:
        """The summary that the last command printed."""
        out = self.out.read_text().splitlines()
        return json.loads(out[-1]) if out else {}

    def said(self) -> str:
        return self.err.read_text()

    def disk(self) -> dict[str, int]:
        """Every path with its size, but for what the command printed."""
        return {name: size for name, size in snapshot(self.folder).items() if name not in (self.out.name, self.err.name)}

    def happened(self) -> list[str]:
        """The faults that happened."""
        return sorted(p.name for p in (self.folder / "faults").iterdir())

    def wait_for(self, text: str, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while text not in self.said():
            assert time.monotonic() < until, f"never said {text!r}:\n{self.said()}"
            time.sleep(0.1)

    def actors(self, kind: str = "TrainerActor") -> Iterator[int]:
        """The process ids of the running sweep's actors of a kind."""
        assert self.process
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if f"ray::{kind}" in " ".join(child.cmdline()):
                        yield child.pid

    def trainer(self) -> int:
        """The process id of a trainer actor."""
        until = time.monotonic() + 240
        while time.monotonic() < until:
            for pid in self.actors():
                return pid
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

    def end(self) -> None:
        """End what was left behind, by process id."""
        if self.process and self.process.poll() is None:
            for process in self.watch():
                with contextlib.suppress(psutil.Error):
                    process.kill()


def left(processes: list[psutil.Process], seconds: float = 10) -> list[str]:
    """The command lines of those that are still alive after so many seconds."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    found = []
    for process in alive:
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def weights(summary: SweepSummary | dict[str, Any]) -> dict[str, str | None]:
    return {name: member.weights_sha256 for name, member in SweepSummary.model_validate(summary).members.items()}


def points(result: SweepSummary | dict[str, Any]) -> dict[str, dict[tuple[str, int], float]]:
    """Every metric point of each member's run, timings left out. Fails where a (key, step) is there twice."""
    summary = SweepSummary.model_validate(result)
    client = TrackingClient(summary.tracking_uri).client
    experiment = client.get_run(summary.parent_run_id).info.experiment_id
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


def begun(home: Path) -> list[str]:
    """What somebody began to write and nobody removed."""
    hidden = [p for p in (*home.rglob(".*"), *home.parent.glob(".conclave-*")) if p.name not in KEPT]
    return [str(p) for p in (*hidden, *(f.parent / "checkpoint" for f in home.glob("jobs/*/fit"))) if p.exists()]


def rewrite(folder: Path, **changes: object) -> None:
    """A manifest that says something else, its checksum made right."""
    values = {key: value for key, value in json.loads((folder / MANIFEST).read_bytes()).items() if key != "checksum"}
    (folder / MANIFEST).write_text(json.dumps(seal({**values, **changes})))
