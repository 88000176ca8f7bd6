"""Named points in our own code where tests inject a fault. Off unless CONCLAVE_FAULT is set.

CONCLAVE_FAULT=POINT[@JOB]:COUNT:ACTION, several separated by commas: at the COUNTth time (from 1) that a process reaches
POINT in one job, or in JOB where one is named, do ACTION: kill (SIGKILL to itself), stop (SIGSTOP), raise, hang,
disk-full, oom (out of device memory), or nan and other (returned to the caller, who knows what to spoil).

CONCLAVE_FAULT_DIR names a folder in which a fault leaves a file when it happens. With it each fault happens once in all, in
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

_times_reached: Counter[str] = Counter()
_current_job = ""


class InjectedFaultError(RuntimeError):
    """The exception that the action `raise` raises."""


def set_job(label: str) -> None:
    """Name the job that this process works on from now on, and count its fault points from zero."""
    global _current_job  # one process works on one job at a time
    _current_job = label
    _times_reached.clear()


def fault_point(point: str) -> str:
    """Do what CONCLAVE_FAULT asks for at this point.

    Returns:
        "nan" or "other" where the caller is to spoil its own values, else "".
    """
    setting = os.environ.get("CONCLAVE_FAULT")
    if not setting:
        return ""
    _times_reached[point] += 1
    for fault in setting.split(","):
        where, count, action = fault.rsplit(":", 2)
        name, _, job = where.partition("@")
        if name == point and (not job or job == _current_job) and _is_due(point, int(count)) and _is_first(fault):
            return _act(action, point)
    return ""


def _is_due(point: str, count: int) -> bool:
    """Return whether the count is right: with a folder that remembers, any time from the COUNTth on; else just then."""
    return _times_reached[point] >= count if "CONCLAVE_FAULT_DIR" in os.environ else _times_reached[point] == count


def _is_first(fault: str) -> bool:
    """Claim a fault for this process; return False where another process did so before."""
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


def _act(action: str, point: str) -> str:
    if action in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    elif action == "raise":
        raise InjectedFaultError(f"injected at {point}")
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
