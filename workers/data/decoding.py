"""Decode images in background threads, as many as pay off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from types import TracebackType
from typing import Generic, TypeVar

SLICE = 32  # images per task: submitting a task takes as long as decoding a small image
SMALL = 0.5e-3  # seconds per image. Faster decoding is mostly Python under the GIL: two threads are slower than one

T = TypeVar("T")
R = TypeVar("R")


class Decoding(Generic[T, R]):
    """Applies `function` to items in background threads. Use it as a context manager.

    Args:
        function: Decodes one item. Its exceptions propagate to the caller.
    """

    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function
        self.pool: ThreadPoolExecutor | None = None  # created once the first items are timed

    def __enter__(self) -> Decoding[T, R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def begin(self, items: Sequence[T]) -> Callable[[], list[R]]:
        """Start decoding these items. Return a function that waits for the results and returns them in order."""
        decoded = self._first(items[:SLICE]) if items and self.pool is None else []
        remaining = items[len(decoded) :]
        slices = [remaining[start : start + SLICE] for start in range(0, len(remaining), SLICE)]
        futures = [self.pool.submit(self._slice, part) for part in slices if self.pool]
        return lambda: [*decoded, *(result for future in futures for result in future.result())]

    def _first(self, items: Sequence[T]) -> list[R]:
        """Decode right away, to time an item. Uses the median, because the first call also imports modules."""
        results, seconds = [], []
        for item in items:
            began = time.perf_counter()
            results.append(self.function(item))
            seconds.append(time.perf_counter() - began)
        self.pool = ThreadPoolExecutor(1 if median(seconds) < SMALL else os.cpu_count())
        return results

    def _slice(self, items: Sequence[T]) -> list[R]:
        return [self.function(item) for item in items]
