"""The reaper: it ends what belongs to a dead driver's session, and nothing else."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

REAPER = Path(__file__).parents[2] / "orchestrator" / "cluster" / "reaper.py"
SLEEP = "import time; time.sleep(60)"
DRIVER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}']); {SLEEP}"


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
        reaper = subprocess.Popen([sys.executable, str(REAPER), str(driver.pid), str(tmp_path)], stdin=subprocess.PIPE, text=True)
        time.sleep(1.5)
        driver.kill()
        driver.wait()
        assert reaper.stdin
        reaper.stdin.close()
        assert reaper.wait(timeout=20) == 0
        assert not below[0].is_running() or below[0].status() == psutil.STATUS_ZOMBIE, "seen below the driver while it lived"
        assert started.wait(1) == -9, "knows the token"
        assert other.poll() is None, "names the folder, and knows another token"
        assert not tmp_path.exists()
    finally:
        for process in (driver, started, other):
            process.kill()
            process.wait()
