"""Ends what a driver that was killed leaves behind: Ray's processes that outlive a raylet that dies without a word.

A process of its own, run as a file. It reads the name of the driver's private Ray session and then lists of [process id,
start time] from stdin, a line each, until the driver closes it or dies. Then it ends those that are still there, and
whatever was just being started: that carries the session's name on its command line.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator

import psutil

GRACE_SECONDS = 1.5  # to leave on their own
WATCH_SECONDS = 6.0  # a raylet that is not dead yet may still start a worker


def main() -> None:
    session: str = json.loads(sys.stdin.readline() or '""')
    known: set[tuple[int, float]] = set()
    for line in sys.stdin:
        known.update((int(pid), float(started)) for pid, started in json.loads(line))
    time.sleep(GRACE_SECONDS)
    until = time.monotonic() + WATCH_SECONDS - GRACE_SECONDS
    while time.monotonic() < until:
        for process in _remaining(known, session):
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.5)


def _remaining(known: set[tuple[int, float]], session: str) -> Iterator[psutil.Process]:
    for pid, started in known:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == started:  # the number may be another's by now
                yield process
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if session and any(session in word for word in process.cmdline()):
                yield process


if __name__ == "__main__":
    main()
