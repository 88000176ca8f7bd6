"""How fast the machine is meanwhile, for what takes minutes and can't be interleaved: some change their speed twofold.

Every PAUSE seconds a thread does a piece of work that is always the same (it multiplies matrices and copies memory, as a training
step does), and notes the processor time that it took. That takes a two-hundredth of a core.
"""

from __future__ import annotations

import threading
import time
from statistics import fmean
from types import TracebackType
from typing import Self

import torch

PAUSE = 5.0
SIDE, COPIED = 768, 8_000_000  # of a matrix product, and numbers: about ten milliseconds each


class Speedometer:
    """A context in which the machine's speed is told, in pieces of work a second of processor time."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        torch.set_num_threads(1)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        matrix, numbers = torch.rand(SIDE, SIDE), torch.rand(COPIED)
        target = torch.empty_like(numbers)
        while True:
            began = time.thread_time()
            matrix @ matrix
            target.copy_(numbers)
            self._seen.append((time.time(), 1 / (time.thread_time() - began)))
            if self._is_over.wait(PAUSE):
                return

    def speed(self, began: float, ended: float) -> float:
        """Return the mean speed between two times of `time.time()`."""
        return fmean(speed for when, speed in self._seen if began <= when <= ended)
