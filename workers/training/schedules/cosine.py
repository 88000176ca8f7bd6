"""The learning rate falls by a cosine."""

from __future__ import annotations

import math
from typing import Literal

from workers.config.extensions import SCHEDULES, ScheduleSpec


@SCHEDULES.register
class CosineSchedule(ScheduleSpec):
    """Anneals the learning rate to zero by a cosine."""

    kind: Literal["cosine"] = "cosine"

    def rate(self, base: float, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step."""
        return anneal(base, 0.0, step / steps)


def anneal(start: float, end: float, share: float) -> float:
    """Return the value of a cosine between two rates, after this share of the way."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
