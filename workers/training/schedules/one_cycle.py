"""The learning rate rises, and falls from there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.config.extensions import SCHEDULES, ScheduleSpec
from workers.training.schedules.cosine import anneal


@SCHEDULES.register
class OneCycleSchedule(ScheduleSpec):
    """Warms up for the share `warmup` of all steps, then anneals by a cosine, as torch's OneCycleLR.

    Source: Smith and Topin 2018, arXiv:1708.07120.
    """

    kind: Literal["one_cycle"] = "one_cycle"
    warmup: float = Field(0.3, gt=0, lt=1)

    def rate(self, base: float, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step."""
        peak = max(self.warmup * steps - 1, 1e-9)
        if step <= peak:
            return anneal(base / 25, base, step / peak)
        return anneal(base, base / 25e4, (step - peak) / max(steps - 1 - peak, 1e-9))
