"""Wait for something to become true."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], seconds: float, pause: float = 0.5, give_up: Callable[[], object] | None = None
) -> bool:
    """Ask a question again and again, until the answer is yes.

    Args:
        condition: The question. It is asked once at least.
        seconds: For how long it is asked.
        pause: Seconds between two questions.
        give_up: Whether the answer can never become yes any more.

    Returns:
        Whether it was yes in the end.
    """
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until or (give_up is not None and give_up()):
            return False
        time.sleep(pause)
    return True
