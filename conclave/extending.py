"""The base classes of extensions, and the registries that find them. `docs/extending.md` has an example of each."""

from fusion.interface import FUSIONS, Description, FusionMethod, NetworkOutputs
from fusion.predictions import FusionInputs, Predictions, softmax
from workers.config.extensions import (
    ARCHITECTURES,
    AUGMENTATIONS,
    LAYOUTS,
    OPTIMIZERS,
    SCHEDULES,
    Augmentation,
    Labels,
    OptimizerSpec,
    ScheduleSpec,
)
from workers.data.layout import Item, Layout
from workers.models.source import ArchitectureSource, PretrainedWeights

__all__ = [
    "ARCHITECTURES",
    "AUGMENTATIONS",
    "FUSIONS",
    "LAYOUTS",
    "OPTIMIZERS",
    "SCHEDULES",
    "ArchitectureSource",
    "Augmentation",
    "Description",
    "FusionInputs",
    "FusionMethod",
    "Item",
    "Labels",
    "Layout",
    "NetworkOutputs",
    "OptimizerSpec",
    "Predictions",
    "PretrainedWeights",
    "ScheduleSpec",
    "softmax",
]
