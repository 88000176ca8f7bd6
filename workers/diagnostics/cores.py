"""Count the CPU cores that this process may use."""

from __future__ import annotations

import os
from functools import cache

LIMIT = "LOKY_MAX_CPU_COUNT"  # joblib's variable, which processes that start later inherit


@cache
def available_cores() -> int:
    """Return the number of cores, within the limits of the container, of the process's affinity and of `limit_cores`."""
    from joblib import cpu_count

    return int(cpu_count())


def limit_cores(most: int) -> None:
    """Use at most so many cores, in this process and in those that it starts."""
    os.environ[LIMIT] = str(most)
    available_cores.cache_clear()
