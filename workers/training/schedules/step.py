"""The learning rate falls by steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.config.extensions import SCHEDULES, ScheduleSpec


@SCHEDULES.register
class StepSchedule(ScheduleSpec):
    """Multiplies the learning rate by `factor` every `every` epochs."""

    kind: Literal["step"] = "step"
    every: int = Field(30, ge=1)
    factor: float = Field(0.1, gt=0, le=1)

    def rate(self, base: float, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step."""
        return base * float(self.factor) ** (step // steps_per_epoch // self.every)
