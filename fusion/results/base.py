"""Base class and types shared by all results."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float]
Metric = Literal["nll", "accuracy", "balanced_accuracy", "macro_f1", "auroc", "top5"]
METRIC_NAMES: dict[Metric, str] = {
    "nll": "loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "top5": "top-5 accuracy",
}

# from 0 to 1; the loss is 1 minus them
SHARES: tuple[Metric, ...] = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "top5",
)

TOP = 5  # answers of which one is right for the metric top5


class FusionResult(BaseModel):
    """Base of all results. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", serialize_by_alias=True, validate_by_name=True)
