"""Ends what a driver that was killed leaves behind: Ray's agents outlive a raylet that dies without a word.

A process of its own, run as a file. It reads lists of [process id, start time] from stdin, a line each, until the driver
closes it or dies, and then ends those that are still there.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time

import psutil

GRACE_SECONDS = 1.5  # to leave on their own


def main() -> None:
    known: set[tuple[int, float]] = set()
    for line in sys.stdin:
        known.update((int(pid), float(started)) for pid, started in json.loads(line))
    time.sleep(GRACE_SECONDS)
    for pid, started in known:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == started:  # the number may be another's by now
                process.kill()


if __name__ == "__main__":
    main()
