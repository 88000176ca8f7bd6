"""Decide when a checkpoint is worth the time to write it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

FREE_SECONDS = 0.3  # total writing time that a training may always spend, whatever its share
LARGEST_SHARE = 0.01  # largest share of the time for end-of-epoch checkpoints beyond that


class CheckpointPolicy:
    """Tracks when the last checkpoint was written, and the writing time of it and of all checkpoints.

    Args:
        longest_seconds: Longest time without a checkpoint.
    """

    def __init__(self, longest_seconds: float) -> None:
        self.longest_seconds = longest_seconds
        self.start()

    def start(self) -> None:
        """Start the clock, with no time spent on checkpoints."""
        self.written_at, self.write_seconds, self.total_seconds = time.monotonic(), 0.0, 0.0

    def is_overdue(self) -> bool:
        """Return whether a checkpoint must be written after the next step."""
        return time.monotonic() - self.written_at > self.longest_seconds

    def is_due(self) -> bool:
        """Return whether the checkpoint at the end of an epoch may be written.

        False if writing would take more than its share of the time. A kill then costs at most 100 times the writing time of a
        checkpoint: about half a minute.
        """
        is_free = self.total_seconds < FREE_SECONDS
        return is_free or time.monotonic() - self.written_at > self.write_seconds / LARGEST_SHARE

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Measure how long it takes to write a checkpoint."""
        began = time.monotonic()
        yield
        self.written_at = time.monotonic()
        self.write_seconds = self.written_at - began
        self.total_seconds += self.write_seconds
