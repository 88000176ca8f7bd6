"""Kill the processes that a driver leaves behind, and remove its private folder.

This file runs as a separate process, with the driver's private folder as its argument. It waits for the lock that the driver
holds until its end. Then it kills the remaining Ray processes, including those that are just starting: they have the folder's
token in their environment, or a file of the folder open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path

import psutil

TOKEN, OWNER = "token", "owner"  # files of a private folder
DISMISSED = "dismissed"  # a file that a driver creates if it ends normally
TITLE = "ray::"  # prefix of the titles of Ray's processes
SENTENCE = "conclave: the command was ended from outside, or by Ray. What is finished is kept: run the same command again."
GRACE_SECONDS = 1.5  # for processes to exit on their own
WATCH_SECONDS = 6.0  # a raylet that is not dead yet may still start a worker


def main() -> None:
    """Wait until the driver ends, and clean up after it."""
    folder = Path(sys.argv[1])
    with open(folder / OWNER) as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        if not (folder / DISMISSED).exists():
            with contextlib.suppress(OSError):
                print(SENTENCE, file=sys.stderr, flush=True)
        _hang_up()
        died = time.monotonic()
        while (age := time.monotonic() - died) < WATCH_SECONDS:
            if age > GRACE_SECONDS:
                end_session(folder)
            time.sleep(0.2)
        shutil.rmtree(folder, ignore_errors=True)


def _hang_up() -> None:
    """Close the output: else a process that reads it through a pipe would wait until the reaper ends."""
    with open(os.devnull, "wb") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())


def end_session(folder: Path) -> None:
    """Kill every other process that belongs to the Ray of a private folder."""
    for process in psutil.process_iter():
        if process.pid != os.getpid() and is_of_session(process, folder):
            with contextlib.suppress(psutil.Error):
                process.kill()


def is_of_session(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process belongs to the Ray of a private folder.

    Ray's agents overwrite their environment with their title, so their open log files identify them.
    """
    with contextlib.suppress(psutil.Error):
        if process.environ().get("RAY_AUTH_TOKEN_PATH") == str(folder / TOKEN):
            return all(Path(word) != Path(__file__) for word in process.cmdline()[:3])  # not a reaper
    with contextlib.suppress(psutil.Error):
        if any(word.startswith(TITLE) for word in process.cmdline()[:1]):  # empty for a process that has just ended
            return any(Path(file.path).is_relative_to(folder) for file in process.open_files())
    return False


if __name__ == "__main__":
    main()
