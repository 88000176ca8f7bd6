"""Named points in our own code where tests inject a fault. Off unless CONCLAVE_FAULT is set.

CONCLAVE_FAULT=POINT[@JOB]:COUNT:ACTION, several separated by commas: at the COUNTth time (from 1) that a process reaches
POINT in one job, or in JOB if given, do ACTION: kill (SIGKILL to itself), stop (SIGSTOP), raise, hang,
disk-full, oom (out of device memory), or nan and other (returned to the caller, which corrupts its own values).

CONCLAVE_FAULT_DIR names a folder in which each fault leaves a file. With it, each fault happens only once, in the first process
that reaches it, and a test can look for the file. Without it, it happens once per process.
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
    """Inject the fault that CONCLAVE_FAULT sets for this point, if any.

    Returns:
        "nan" or "other" if the caller should corrupt its own values, else "".
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
    """Return whether a fault is due: at the COUNTth time, or from then on if CONCLAVE_FAULT_DIR is set."""
    return _times_reached[point] >= count if "CONCLAVE_FAULT_DIR" in os.environ else _times_reached[point] == count


def _is_first(fault: str) -> bool:
    """Claim a fault for this process; return False if another process claimed it before."""
    folder = os.environ.get("CONCLAVE_FAULT_DIR")
    if folder is None:
        return True
    with tempfile.NamedTemporaryFile("w", dir=Path(folder).parent, encoding="utf-8") as file:
        file.write(str(os.getpid()))
        file.flush()
        try:
            os.link(file.name, Path(folder, fault.replace("/", "_")))  # atomic: the file never exists without its content
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
