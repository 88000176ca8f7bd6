"""Named points in our own code where tests inject a fault. Off unless CONCLAVE_FAULT is set.

CONCLAVE_FAULT=POINT[@JOB]:COUNT:ACTION, several separated by commas: at the COUNTth time (from 1) that a process reaches
POINT in one job, or in JOB where one is named, do ACTION: kill (SIGKILL to itself), stop (SIGSTOP), raise, hang,
disk-full, oom (out of device memory), or nan and other (given back to the caller, who knows what to spoil).

CONCLAVE_FAULT_DIR names a folder in which a fault leaves a file when it happens; with it each happens once in all, in
whatever process comes first, and a test can see that it did. Without it each process has its own.
"""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

_reached: Counter[str] = Counter()
_subject = ""


class InjectedFault(RuntimeError):
    """What the action `raise` raises."""


def subject(job: str) -> None:
    """From here on this process works on `job`; what it reaches is counted anew."""
    global _subject  # one process works on one job at a time
    _subject = job
    _reached.clear()


def reach(point: str) -> str:
    """Do what CONCLAVE_FAULT asks for here. Gives "nan" or "other" where the caller is to spoil what it has, else ""."""
    asked = os.environ.get("CONCLAVE_FAULT")
    if not asked:
        return ""
    _reached[point] += 1
    for fault in asked.split(","):
        where, count, action = fault.rsplit(":", 2)
        name, _, job = where.partition("@")
        if name == point and (not job or job == _subject) and _due(point, int(count)) and _first(fault):
            return _do(action, point)
    return ""


def _due(point: str, count: int) -> bool:
    """With a folder that remembers, any time from the COUNTth on; else just then."""
    return _reached[point] >= count if "CONCLAVE_FAULT_DIR" in os.environ else _reached[point] == count


def _first(fault: str) -> bool:
    folder = os.environ.get("CONCLAVE_FAULT_DIR")
    if folder is None:
        return True
    with tempfile.NamedTemporaryFile("w", dir=Path(folder).parent, encoding="utf-8") as file:
        file.write(str(os.getpid()))
        file.flush()
        try:
            os.link(file.name, Path(folder, fault.replace("/", "_")))  # there with its content, or not at all
        except FileExistsError:
            return False
    return True


def _do(action: str, point: str) -> str:
    if action in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    elif action == "raise":
        raise InjectedFault(f"injected at {point}")
    elif action == "hang":
        time.sleep(1e6)
    elif action == "disk-full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)
    elif action == "oom":
        import torch

        raise torch.OutOfMemoryError(f"injected at {point}")
    elif action not in ("nan", "other"):
        raise ValueError(f"CONCLAVE_FAULT: unknown action {action!r}")
    return action
