"""Base class and types shared by all results."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float]
Metric = Literal["nll", "accuracy", "balanced_accuracy"]
METRIC_NAMES: dict[Metric, str] = {"nll": "loss", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


class FusionResult(BaseModel):
    """Base of all results. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", serialize_by_alias=True, validate_by_name=True)
