"""Describe the parts of a recipe: optimizer and schedule by their kinds, averages, cycles, augmentations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from workers.config.extensions import (
    AUGMENTATIONS,
    OPTIMIZERS,
    REFERENCE,
    SCHEDULES,
    Kinds,
    OptimizerSpec,
    OwnOptimizer,
    OwnSchedule,
    ScheduleSpec,
    is_reference,
)
from workers.config.strict import Shorthand, Strict, kind

OPTIMIZER, SCHEDULE = "sgd", "step"  # defaults

Optimizer = Annotated[OptimizerSpec, Kinds(OPTIMIZERS, OwnOptimizer)]
Schedule = Annotated[ScheduleSpec, Kinds(SCHEDULES, OwnSchedule)]


def default_optimizer() -> OptimizerSpec:
    """Return the optimizer that is used if a team file names none."""
    return OPTIMIZERS[OPTIMIZER].model_validate({})


def default_schedule() -> ScheduleSpec:
    """Return the schedule that is used if a team file names none."""
    return SCHEDULES[SCHEDULE].model_validate({})


class Ema(Strict):
    """Exponential moving average of the weights, over steps."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.999, gt=0, lt=1)


class Swa(Strict):
    """Mean of the weights at the ends of the last epochs (Izmailov et al. 2018, arXiv:1803.05407); `last` is their share."""

    kind: Literal["swa"] = "swa"
    last: float = Field(0.25, gt=0, le=1)


Average = Annotated[Annotated[Ema | Swa, Field(discriminator="kind")], BeforeValidator(kind), Shorthand({"enum": ["ema", "swa"]})]


class Cycles(Strict):
    """Snapshot cycles of a training: a long first cycle, then short ones (Garipov et al. 2018).

    Attributes:
        first: The first cycle's share of the epochs. The others share the rest equally.
        rate: Factor on the learning rate at the start of the later cycles.
    """

    first: float = Field(gt=0, lt=1)
    rate: float = Field(1.0, gt=0, le=1)


class Augment(Strict):
    """One augmentation by name, with its strength."""

    name: str
    strength: float


def _augment(value: Any) -> Any:
    """Turn `flip` and `{rotate: 15}` into Augment(name, strength)."""
    if isinstance(value, Augment):
        return value
    if isinstance(value, str):
        name, strength = value, None
    elif isinstance(value, Mapping) and len(value) == 1:
        name, strength = next(iter(value.items()))
    elif isinstance(value, Mapping) and set(value) == {"name", "strength"}:
        name, strength = value["name"], value["strength"]
    else:
        raise ValueError("expected a name like flip, or one name with its strength like {rotate: 15}")
    return Augment(name=str(name), strength=check_strength(str(name), strength))


def check_strength(name: str, strength: Any = None) -> float:
    """Return the strength of an augmentation, or its default if None. Raises ValueError if it is invalid."""
    if is_reference(name):  # its class is not imported yet, so its limits are unknown
        default, largest, meaning = 1.0, math.inf, "strength"
    else:
        known = AUGMENTATIONS[name]
        default, largest, meaning = known.default, known.largest, known.meaning
    strength = default if strength is None else strength
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= largest:
        raise ValueError(f"the strength of {name} is its {meaning}: a number above 0, at most {largest:g}")
    return float(strength)


def _no_augment_twice(value: tuple[Augment, ...]) -> tuple[Augment, ...]:
    names = [a.name for a in value]
    if len(set(names)) < len(names):
        raise ValueError("names an augmentation twice")
    return value


class _AugmentSchema:
    """Describe augmentations in a JSON Schema as team files write them: NAME, or NAME: STRENGTH."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        strengths: JsonSchemaValue = {}
        for name, augmentation in AUGMENTATIONS:
            most = {} if math.isinf(augmentation.largest) else {"maximum": augmentation.largest}
            strengths[name] = {"type": "number", "exclusiveMinimum": 0, **most, "description": augmentation.meaning}
        own = {"type": "string", "pattern": f"^{REFERENCE.pattern}$"}
        one = {"type": "object", "maxProperties": 1, "minProperties": 1, "properties": strengths}
        return {"anyOf": [{"enum": list(AUGMENTATIONS.names())}, own, one]}


OneAugment = Annotated[Augment, BeforeValidator(_augment), _AugmentSchema()]
Augments = Annotated[tuple[OneAugment, ...], AfterValidator(_no_augment_twice)]
