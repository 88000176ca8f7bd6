"""Call a function on images in the background, by as many threads as pay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from types import TracebackType
from typing import Generic, TypeVar

SLICE = 32  # images a task: handing one over takes as long as decoding a small one
SMALL = 0.5e-3  # seconds an image. What takes less is mostly Python, which runs in one thread at a time: two are slower than one

T = TypeVar("T")
R = TypeVar("R")


class Decoding(Generic[T, R]):
    """Calls `function` on each of the items that it is given, in the background. Use it as a context manager.

    Args:
        function: Decodes one item. What it raises is raised where its result is asked for.
    """

    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function
        self.pool: ThreadPoolExecutor | None = None  # until it is known how long one takes

    def __enter__(self) -> Decoding[T, R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def begin(self, items: Sequence[T]) -> Callable[[], list[R]]:
        """Begin with these items. Return a function that waits for their results and returns them in order."""
        decoded = self._first(items[:SLICE]) if items and self.pool is None else []
        remaining = items[len(decoded) :]
        slices = [remaining[start : start + SLICE] for start in range(0, len(remaining), SLICE)]
        futures = [self.pool.submit(self._slice, part) for part in slices if self.pool]
        return lambda: [*decoded, *(result for future in futures for result in future.result())]

    def _first(self, items: Sequence[T]) -> list[R]:
        """Decode at once, to see how long an item takes. The median counts, for the very first imports what it needs."""
        results, seconds = [], []
        for item in items:
            began = time.perf_counter()
            results.append(self.function(item))
            seconds.append(time.perf_counter() - began)
        self.pool = ThreadPoolExecutor(1 if median(seconds) < SMALL else os.cpu_count())
        return results

    def _slice(self, items: Sequence[T]) -> list[R]:
        return [self.function(item) for item in items]
