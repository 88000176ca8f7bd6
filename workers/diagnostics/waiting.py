"""Wait for a condition, or retry a step until it works."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def wait_until(
    condition: Callable[[], object], seconds: float, pause: float = 0.5, give_up: Callable[[], object] | None = None
) -> bool:
    """Poll a condition until it is true, or time runs out.

    Args:
        condition: The condition. It is checked at least once.
        seconds: Maximum time to wait.
        pause: Seconds between two checks.
        give_up: Returns true if the condition can no longer become true.

    Returns:
        Whether the condition became true.
    """
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until or (give_up is not None and give_up()):
            return False
        time.sleep(pause)
    return True


def retry_while(kind: type[Exception], step: Callable[[], Answer], seconds: float, pause: float = 2.0) -> Answer:
    """Run a step, and retry it while it raises errors of a kind.

    Args:
        kind: The type of error after which a retry may work.
        step: The step. It is run at least once.
        seconds: No retry starts after this many seconds.
        pause: Seconds between two tries.

    Returns:
        The step's result.

    Raises:
        Exception: The error of the last try.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return step()
        except kind:
            if time.monotonic() + pause > until:
                raise
            time.sleep(pause)
