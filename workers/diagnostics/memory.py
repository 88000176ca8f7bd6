"""Read what the kernel says of this process's memory: the limit of its control group, and how often it killed for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # bytes; version 1 states a number near 2^63 where there is no limit


@dataclass(frozen=True)
class MemoryState:
    """The memory of a control group.

    Attributes:
        kills: Number of processes that the kernel killed in it for lack of memory.
        limit: Its limit in bytes; None without one.
    """

    kills: int = 0
    limit: int | None = None


def memory_state(root: Path = ROOT, process: Path = PROCESS) -> MemoryState:
    """Return the state of this process's control group, of version 1 or 2; no kills and no limit where there is none.

    Args:
        root: Where control groups are mounted.
        process: The kernel's list of this process's groups.
    """
    try:
        groups = process.read_text(encoding="utf-8")
    except OSError:
        return MemoryState()
    old, new = re.search(r"^\d+:[^:]*\bmemory\b[^:]*:(.*)$", groups, re.M), re.search(r"^0::(.*)$", groups, re.M)
    kinds = [(old, root / "memory", "memory.oom_control", "memory.limit_in_bytes"), (new, root, "memory.events", "memory.max")]
    for group, base, events, limit in kinds:
        # In a container, the path may be that of the host, while the container's own group is mounted at the base.
        for folder in (base / group[1].strip("/"), base) if group else ():
            if found := re.search(r"^oom_kill (\d+)$", _read(folder / events), re.M):
                most = _read(folder / limit).strip()
                return MemoryState(int(found[1]), int(most) if most.isdecimal() and int(most) < UNLIMITED else None)
    return MemoryState()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
