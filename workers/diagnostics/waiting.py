"""Wait for something to become true, or to work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


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


def retry_while(kind: type[Exception], step: Callable[[], Answer], seconds: float, pause: float = 2.0) -> Answer:
    """Do a step, and do it again while it raises errors of a kind.

    Args:
        kind: The kind of error after which another try may work.
        step: The step. It is done once at least.
        seconds: After so many seconds no further try is begun.
        pause: Seconds between two tries.

    Returns:
        What the step returned.

    Raises:
        Exception: What the last try raised.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return step()
        except kind:
            if time.monotonic() + pause > until:
                raise
            time.sleep(pause)
