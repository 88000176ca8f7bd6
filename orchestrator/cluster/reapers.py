"""Keep two reapers beside a driver for as long as it lives: one of them may be killed together with it."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

from orchestrator.cluster.reaper import END

COUNT = 2
LOOK_SECONDS = 0.5


class Reapers:
    """Two reapers, and a thread that starts another one where somebody killed one.

    The thread needs nobody else to look, for Ray may keep the driver waiting while it starts.

    Args:
        folder: The private folder of the driver's Ray, which they remove in the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.over = folder, threading.Event()
        self.processes = [self._start() for _ in range(COUNT)]
        self.thread = threading.Thread(target=self._keep, daemon=True, name="conclave-reapers")
        self.thread.start()
        atexit.register(self.dismiss)

    def _keep(self) -> None:
        while not self.over.wait(LOOK_SECONDS):
            for number, process in enumerate(self.processes):
                if process.poll() is not None:
                    self.processes[number] = self._start()

    def _start(self) -> subprocess.Popen[str]:
        """Start a reaper, in a session of its own so that a signal to the driver's does not reach it."""
        command = [sys.executable, str(Path(__file__).with_name("reaper.py")), str(os.getpid()), str(self.folder)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def dismiss(self) -> None:
        """Tell them that the driver ends by itself. A second call does nothing."""
        self.over.set()
        self.thread.join()
        for process in self.processes:
            if process.stdin and not process.stdin.closed:
                with contextlib.suppress(OSError):  # it was killed
                    process.stdin.write(f"{END}\n")
                    process.stdin.close()
