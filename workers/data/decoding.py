"""Decode images in background threads, as many as pay off."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from statistics import median
from typing import TypeVar

from workers.diagnostics.cores import available_cores

SLICE = 32  # images per task: submitting a task takes as long as decoding a small image
SMALL = 0.5e-3  # seconds per image. Faster decoding is mostly Python under the GIL: two threads are slower than one

T = TypeVar("T")
R = TypeVar("R")


def decode_batches(decode: Callable[[T], R], items: Iterator[T], size: int) -> Generator[list[tuple[T, R]], None, None]:
    """Yield batches of items with their results, while background threads decode the next batch.

    Close the generator if you leave it early.

    Args:
        decode: Decodes one item. Its exceptions propagate to the caller.
        items: The items.
        size: Items per batch.
    """
    batch = list(islice(items, size))
    results, seconds = [], []
    for item in batch[:SLICE]:  # decoded right away, to time an item
        began = time.perf_counter()
        results.append(decode(item))
        seconds.append(time.perf_counter() - began)
    # The median, because the first call also imports modules.
    pool = ThreadPoolExecutor(1 if median(seconds or [0.0]) < SMALL else available_cores())

    def begin(batch: Sequence[T]) -> list[Future[list[R]]]:
        slices = [batch[start : start + SLICE] for start in range(0, len(batch), SLICE)]
        return [pool.submit(lambda part: [decode(item) for item in part], part) for part in slices]

    try:
        futures = begin(batch[SLICE:])
        while batch:
            results += [result for future in futures for result in future.result()]
            following = list(islice(items, size))
            futures = begin(following)
            yield list(zip(batch, results, strict=True))
            batch, results = following, []
    finally:
        pool.shutdown(cancel_futures=True)
