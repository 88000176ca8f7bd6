"""The reaper and the private folder: what a dead driver leaves is ended and removed, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from orchestrator.cluster import private_folder
from orchestrator.cluster.private_folder import MAX_PATH, PrivateFolder
from orchestrator.cluster.reaper import is_of_session
from workers.diagnostics.waiting import wait_until
from workers.errors import ConclaveError

SENTENCE = "conclave: the command was ended from outside, or by Ray. What is finished is kept: run the same command again."
SLEEP = "import time; time.sleep(60)"
DRIVER = f"""
import os, subprocess, sys, time
from orchestrator.cluster.private_folder import PrivateFolder
folder = PrivateFolder.make()
os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder.token)
started = subprocess.Popen([sys.executable, "-c", "{SLEEP}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(folder.path, started.pid, flush=True)
"""


def driver(*, dies: bool) -> subprocess.Popen[str]:
    ending = "time.sleep(60)" if dies else "sys.exit(0)"
    words = [sys.executable, "-c", DRIVER + ending]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def place_and_child(process: subprocess.Popen[str]) -> tuple[Path, psutil.Process]:
    assert process.stdout
    path, pid = process.stdout.readline().split()
    return Path(path), psutil.Process(int(pid))


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_what_a_killed_driver_leaves_is_ended_and_nothing_else() -> None:
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": "/another/token"}
    other = subprocess.Popen([sys.executable, "-c", SLEEP], env=environment)
    process = driver(dies=True)
    try:
        path, child = place_and_child(process)
        process.kill()
        said = process.communicate(timeout=20)[1]
        assert said == f"{SENTENCE}\n", "the driver had no chance to say anything"
        assert wait_until(lambda: is_gone(child) and not path.exists(), 20)
        assert other.poll() is None, "it knows another token"
    finally:
        for one in (process, other):
            one.kill()
            one.wait()


def test_a_driver_that_ends_by_itself_leaves_nothing_and_nothing_is_said() -> None:
    process = driver(dies=False)
    path, child = place_and_child(process)
    assert process.communicate(timeout=20)[1] == "", "whoever reads the output in a pipe need not wait for the reaper"
    assert wait_until(lambda: is_gone(child) and not path.exists(), 20)


def test_a_driver_that_died_together_with_its_reaper_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    process = driver(dies=True)
    path, child = place_and_child(process)
    reapers = [p for p in psutil.process_iter(["cmdline"]) if str(path) in (p.info["cmdline"] or ())]
    assert len(reapers) == 1
    reapers[0].kill()
    process.kill()
    process.communicate()
    assert wait_until(lambda: is_gone(reapers[0]), 5)
    private_folder.remove_abandoned()  # another test at the same time may do it, too
    assert wait_until(lambda: is_gone(child) and not path.exists(), 5)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Path:
    made = Path("/tmp", f"pf{os.getpid()}")
    made.mkdir()
    monkeypatch.setattr(private_folder, "CANDIDATE_PARENTS", (str(made),))
    monkeypatch.setattr(tempfile, "tempdir", f"/nowhere/{'long-' * 20}")
    return made


def test_only_the_folders_of_drivers_that_are_gone_are_removed(place: Path) -> None:
    try:
        mine = PrivateFolder.make()
        assert mine.path.parent == place, "TMPDIR is too long"
        assert len(str(mine.path)) <= MAX_PATH + 13
        assert (mine.path.stat().st_mode & 0o777, mine.token.stat().st_mode & 0o777) == (0o700, 0o600)
        for name in ("dead", "alive", "never-finished"):
            (place / f"clv-{name}").mkdir()
        (place / "clv-dead" / "owner").touch()
        with open(place / "clv-alive" / "owner", "w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            second = PrivateFolder.make()
            left = {path.name.removeprefix("clv-") for path in place.iterdir() if path.is_dir()}
        assert left == {"alive", *(one.path.name.removeprefix("clv-") for one in (mine, second))}
        for one in (mine, second):
            one.dismiss()
        assert wait_until(lambda: not any(one.path.exists() for one in (mine, second)), 20)
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("function", "number", "advice"),
    [("fcntl.flock", errno.ENOSYS, r"\. Set TMPDIR"), ("tempfile.mkdtemp", errno.ENOSPC, "Make room there, or set TMPDIR")],
)
def test_a_folder_that_cannot_be_made_is_told_by_its_cause(
    function: str, number: int, advice: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        monkeypatch.setattr(function, Mock(side_effect=OSError(number, os.strerror(number))))
        with pytest.raises(ConclaveError, match=rf"sockets find no place in {place} \(.*{os.strerror(number)}\).*{advice}"):
            PrivateFolder.make()
        assert not [path for path in place.iterdir() if path.is_dir()]
    finally:
        shutil.rmtree(place)


def test_a_process_that_ends_while_it_is_looked_at_is_none_of_the_session(tmp_path: Path) -> None:
    """A process without a command line any more may have had one a moment before."""
    lines = iter([["ray::IDLE"], []])
    process = Mock(environ=dict, cmdline=lambda: next(lines), open_files=list)
    assert not is_of_session(process, tmp_path)
    assert not is_of_session(process, tmp_path)


INTERRUPTED = """
import os, sys
from orchestrator.cluster.connection import Connection

def interrupted(self):
    print(self.folder.path, flush=True)
    raise KeyboardInterrupt

Connection._connect = interrupted
try:
    Connection(None)
except KeyboardInterrupt:
    sys.exit(3)
"""


def test_ray_that_is_interrupted_while_it_starts_leaves_nothing_and_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert wait_until(lambda: not Path(done.stdout.strip()).exists(), 20)
