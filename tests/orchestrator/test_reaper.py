"""The reaper: it ends what belongs to a dead driver's session, and nothing else."""

import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import psutil

from orchestrator.cluster import reaper
from orchestrator.cluster.reaper import is_of_session
from workers.diagnostics.waiting import wait_until

REAPER = Path(__file__).parents[2] / "orchestrator" / "cluster" / "reaper.py"
SLEEP = "import time; time.sleep(60)"
SENTENCE = "conclave: the command was ended from outside, or by Ray. What is finished is kept: run the same command again."
DRIVER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}']); {SLEEP}"


def started_for(driver: int, folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, str(REAPER), str(driver), str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_a_driver_that_ends_by_itself_it_says_nothing(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", SLEEP])
    reaper = started_for(driver.pid, tmp_path)
    driver.kill()
    driver.wait()
    assert reaper.communicate("end\n", timeout=20)[1] == ""


def test_of_two_reapers_whichever_is_left_speaks_and_both_together_say_it_once(tmp_path: Path) -> None:
    """Somebody may kill one of them, and a moment later Ray the driver."""
    for number, killed in enumerate((0, 1, None)):
        folder = tmp_path / str(number)
        folder.mkdir()
        driver = subprocess.Popen([sys.executable, "-c", SLEEP])
        reapers = [started_for(driver.pid, folder) for _ in range(2)]
        if killed is not None:
            reapers[killed].kill()
        driver.kill()
        driver.wait()
        said = [reaper.communicate(timeout=20)[1] for reaper in reapers]
        assert sorted(said) == ["", f"{SENTENCE}\n"]


def test_it_ends_what_a_killed_driver_leaves_behind_and_nothing_else(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER])
    (tmp_path / "token").touch()
    started, other = (
        subprocess.Popen([sys.executable, "-c", SLEEP, str(tmp_path)], env={**os.environ, "RAY_AUTH_TOKEN_PATH": str(token)})
        for token in (tmp_path / "token", tmp_path / "another" / "token")
    )
    try:
        while not (below := psutil.Process(driver.pid).children()):
            time.sleep(0.05)
        reaper = started_for(driver.pid, tmp_path)
        time.sleep(1.5)
        driver.kill()
        driver.wait()
        assert reaper.communicate(timeout=20)[1] == f"{SENTENCE}\n", "the driver had no chance to say anything"
        assert reaper.returncode == 0
        assert not below[0].is_running() or below[0].status() == psutil.STATUS_ZOMBIE, "seen below the driver while it lived"
        assert started.wait(1) == -9, "knows the token"
        assert other.poll() is None, "names the folder, and knows another token"
        assert not tmp_path.exists()
    finally:
        for process in (driver, started, other):
            process.kill()
            process.wait()


def test_whoever_reads_the_drivers_output_in_a_pipe_need_not_wait_for_it(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", SLEEP])
    reaper = started_for(driver.pid, tmp_path)
    driver.kill()
    driver.wait()
    assert reaper.stdin
    assert reaper.stderr
    with reaper.stdin as told:
        told.write("end\n")
    with reaper.stderr as heard:
        assert heard.read() == ""
    assert reaper.poll() is None, "it still looks for what the driver left behind"
    assert reaper.wait(20) == 0


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


def test_two_reapers_leave_each_other_alone(tmp_path: Path) -> None:
    """One of them may be killed, and then the other one goes on."""
    start = f"subprocess.Popen([sys.executable, {str(REAPER)!r}, *sys.argv[1:]])"
    script = f"import subprocess, sys, time\n{start}\n{start}\ntime.sleep(60)"
    words = [sys.executable, "-c", script, "1999999999", str(tmp_path)]  # as for a driver that is none of ours
    with subprocess.Popen(words, stdin=subprocess.PIPE) as starter:
        parent = psutil.Process(starter.pid)
        try:
            assert wait_until(lambda: sum(map(reaper._is_reaper, parent.children())) == 2, 20, 0.05)
            assert list(reaper._below(starter.pid)) == []
        finally:
            for process in [*parent.children(), parent]:
                process.kill()
