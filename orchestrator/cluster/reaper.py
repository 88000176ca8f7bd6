"""End what a killed driver leaves behind: Ray's processes that outlive a raylet which dies without a word.

This is a process of its own, run as a file with the driver's process id and its private folder. It keeps looking at what runs
below the driver until the driver writes END to its stdin or dies. Then it ends what is still there, and whatever was just being
started: that has the token of the driver's folder in its environment, or a file of that folder open. Last, it removes the folder.
There are two of them (`reapers.py`).

Somebody may kill the driver, and Ray ends the driver's process itself where a part of it dies while it starts. Neither leaves the
driver a chance to say anything, so the first reaper that notices does.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

TOKEN = "token"
TITLE = "ray::"  # with which the titles of Ray's processes begin
END = "end"  # what a driver writes that ends by itself
SAID = "said"  # the file of whoever says that a driver is gone which had no chance to say it
SENTENCE = "conclave: the command was ended from outside, or by Ray. What is finished is kept: run the same command again."
LOOK_SECONDS = 2.0  # between two looks at what runs below the driver; its end is noticed at once
GRACE_SECONDS = 1.5  # to leave on their own
WATCH_SECONDS = 6.0  # a raylet that is not dead yet may still start a worker
Known = dict[int, psutil.Process]  # psutil's own check keeps a process apart from a later one with its number


def main() -> None:
    """Watch the driver, and clean up after it."""
    driver, folder = int(sys.argv[1]), Path(sys.argv[2])
    known: Known = {}
    _add(known, _below(driver))
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        _add(known, _below(driver))
    if sys.stdin.readline().strip() != END and _is_first(folder):
        with contextlib.suppress(OSError):
            print(SENTENCE, file=sys.stderr, flush=True)
    _hang_up()
    died = time.monotonic()
    while (age := time.monotonic() - died) < WATCH_SECONDS:
        _add(known, _of_session(folder))
        for process in list(known.values()):
            _add(known, _below(process.pid))
            if age > GRACE_SECONDS:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def _hang_up() -> None:
    """Let go of the output: whoever reads it in a pipe would wait for this process, which has nothing more to say."""
    with open(os.devnull, "wb") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere.fileno(), stream.fileno())


def _is_first(folder: Path) -> bool:
    """Return whether no other reaper has noticed yet."""
    try:
        (folder / SAID).touch(exist_ok=False)
    except OSError:
        return False
    return True


def _add(known: Known, processes: Iterator[psutil.Process]) -> None:
    for process in processes:
        if process.pid != psutil.Process().pid:
            known.setdefault(process.pid, process)


def _below(pid: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        yield from (process for process in psutil.Process(pid).children(recursive=True) if not _is_reaper(process))


def _is_reaper(process: psutil.Process) -> bool:
    """Return whether a process is the other reaper, which goes on where this one is killed."""
    with contextlib.suppress(psutil.Error):
        return any(Path(word) == Path(__file__) for word in process.cmdline()[:3])
    return False


def _of_session(folder: Path) -> Iterator[psutil.Process]:
    return (process for process in psutil.process_iter() if is_of_session(process, folder))


def is_of_session(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process belongs to the Ray of a driver's folder.

    Ray's agents write their title over their environment; their logs lie in the folder.
    """
    with contextlib.suppress(psutil.Error):
        if process.environ().get("RAY_AUTH_TOKEN_PATH") == str(folder / TOKEN):
            return True
    with contextlib.suppress(psutil.Error):
        if any(word.startswith(TITLE) for word in process.cmdline()[:1]):  # none of one that has just ended
            return any(Path(file.path).is_relative_to(folder) for file in process.open_files())
    return False


if __name__ == "__main__":
    main()
