"""Count the CPU cores that this process may use."""

from __future__ import annotations

from functools import cache


@cache
def available_cores() -> int:
    """Return the number of cores, within the limits of the container and of the process's affinity."""
    from joblib import cpu_count

    return int(cpu_count())
