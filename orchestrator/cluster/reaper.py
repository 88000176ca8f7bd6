"""End what a killed driver leaves behind: Ray's processes that outlive a raylet which dies without a word.

This is a process of its own, run as a file with the driver's process id and its private folder. It keeps looking at what runs
below the driver until the driver closes its stdin or dies. Then it ends what is still there, and whatever was just being started:
that has the token of the driver's folder in its environment. Last, it removes the folder.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

TOKEN = "token"
LOOK_SECONDS = 0.5
GRACE_SECONDS = 1.5  # to leave on their own
WATCH_SECONDS = 6.0  # a raylet that is not dead yet may still start a worker
Known = dict[int, psutil.Process]  # psutil's own check keeps a process apart from a later one with its number


def main() -> None:
    """Watch the driver, and clean up after it."""
    driver, folder = int(sys.argv[1]), Path(sys.argv[2])
    known: Known = {}
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        _add(known, _below(driver))
    died = time.monotonic()
    while (age := time.monotonic() - died) < WATCH_SECONDS:
        _add(known, _of_session(str(folder / TOKEN)))
        for process in list(known.values()):
            _add(known, _below(process.pid))
            if age > GRACE_SECONDS:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def _add(known: Known, processes: Iterator[psutil.Process]) -> None:
    for process in processes:
        if process.pid != psutil.Process().pid:
            known.setdefault(process.pid, process)


def _below(pid: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        yield from psutil.Process(pid).children(recursive=True)


def _of_session(token: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAY_AUTH_TOKEN_PATH") == token:
                yield process


if __name__ == "__main__":
    main()
