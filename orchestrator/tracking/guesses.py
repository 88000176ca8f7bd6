"""Slow down whoever guesses passwords."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

FREE = 5  # wrong passwords that cost nothing: people mistype
LONGEST = 60.0  # seconds of the longest wait
FORGOTTEN = 900.0  # seconds after the last wrong password until an address starts anew
MOST_ADDRESSES = 10_000


@dataclass
class GuessLimiter:
    """Counts the wrong passwords of each address, and says how long it has to wait before its next one is looked at.

    The wait begins with a second after the fifth wrong password, doubles with each further one, and is a minute at most.

    Attributes:
        clock: Returns the time in seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _wrong: dict[str, tuple[int, float]] = field(default_factory=dict)  # how many, and when the last one was

    def seconds_to_wait(self, address: str) -> float:
        """Return for how many seconds no password of this address is looked at; 0 for none."""
        count, last = self._wrong.get(address, (0, 0.0))
        if count < FREE:
            return 0.0
        wait = min(LONGEST, 2.0 ** min(count - FREE, 10))
        return max(0.0, last + wait - self.clock())

    def add_wrong(self, address: str) -> None:
        """Count a wrong password of an address."""
        now = self.clock()
        count, last = self._wrong.pop(address, (0, now))
        self._wrong[address] = (count + 1 if now - last < FORGOTTEN else 1, now)
        if len(self._wrong) > MOST_ADDRESSES:  # the one that was wrong longest ago
            del self._wrong[next(iter(self._wrong))]
