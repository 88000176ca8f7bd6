"""The reaper: it ends what belongs to a dead driver's session, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import psutil

REAPER = Path(__file__).parents[2] / "orchestrator" / "reaper.py"
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_it_ends_the_known_and_the_just_started_of_its_session_alone() -> None:
    known, started, others = (
        subprocess.Popen([*SLEEP, word])
        for word in ("x", "--x=/tmp/session_2026-01-01_10-00-00_1_77/y", "session_2026-01-01_10-00-00_1_777")
    )
    try:
        reaper = subprocess.Popen([sys.executable, str(REAPER), "77"], stdin=subprocess.PIPE, text=True)
        assert reaper.stdin
        reaper.stdin.write(json.dumps([[known.pid, psutil.Process(known.pid).create_time()], [others.pid, 1.0]]) + "\n")
        reaper.stdin.close()
        assert reaper.wait(timeout=20) == 0
        assert [known.wait(1), started.wait(1)] == [-9, -9]
        assert others.poll() is None, "another session's, and a process id that is another's by now"
    finally:
        for process in (known, started, others):
            process.kill()
            process.wait()
