"""Decide when a checkpoint is worth the time that it takes to write."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

FREE_SECONDS = 0.3  # that the checkpoints of a training may take altogether, whatever their share
LARGEST_SHARE = 0.01  # of the time that checkpoints at the ends of epochs may take beyond that


class CheckpointPolicy:
    """Knows when the last checkpoint was written, and how long that and all of them took.

    Args:
        longest_seconds: Longest time that a training goes without a checkpoint.
    """

    def __init__(self, longest_seconds: float) -> None:
        self.longest_seconds = longest_seconds
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self.written_at, self.write_seconds, self.total_seconds = time.monotonic(), 0.0, 0.0

    def is_overdue(self) -> bool:
        """Return whether a checkpoint must be written after the next step."""
        return time.monotonic() - self.written_at > self.longest_seconds

    def is_due(self) -> bool:
        """Return whether the checkpoint at the end of an epoch may be written.

        It may not where writing would take more than its share of the time. What a kill then costs is at most a hundred times
        what a checkpoint takes: half a minute or so.
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
