"""Ends what a driver that was killed leaves behind: Ray's processes that outlive a raylet that dies without a word.

A process of its own, run as a file with the driver's process id. It reads lists of [process id, start time] from stdin, a
line each, until the driver closes it or dies. Then it ends those that are still there, and whatever was just being
started: that has the name of the driver's private Ray session, which ends in the driver's process id, on its command line.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator

import psutil

GRACE_SECONDS = 1.5  # to leave on their own
WATCH_SECONDS = 6.0  # a raylet that is not dead yet may still start a worker


def main() -> None:
    session = re.compile(rf"session_[0-9_-]+_{int(sys.argv[1])}(?![0-9])")
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


def _remaining(known: set[tuple[int, float]], session: re.Pattern[str]) -> Iterator[psutil.Process]:
    for pid, started in known:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == started:  # the number may be another's by now
                yield process
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(session.search(word) for word in process.cmdline()):
                yield process


if __name__ == "__main__":
    main()
