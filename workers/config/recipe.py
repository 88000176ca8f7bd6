"""Describe the parts of a recipe: optimizers, schedules, averages, cycles, augmentations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from workers.config.strict import Strict, kind

AUGMENTS: dict[str, tuple[float, float, str]] = {
    # name: (default strength, largest strength, what the strength means)
    "flip": (0.5, 1.0, "probability of a horizontal flip"),
    "crop": (0.125, 256.0, "padding before a random crop: a share of the side, or pixels from 1 on"),
    "rotate": (15.0, 180.0, "largest angle in degrees"),
    "cutout": (0.5, 256.0, "side of the square hole: a share of the side, or pixels from 1 on"),
    "color": (0.2, 1.0, "largest relative change of brightness, contrast and saturation"),
    "erase": (0.25, 1.0, "probability of erasing a random rectangle"),
    "mixup": (0.2, 10.0, "alpha of the Beta distribution that mixes pairs of images"),
}


class Sgd(Strict):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = True


class AdamW(Strict):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)


class StepSchedule(Strict):
    """Multiplies the learning rate by `factor` every `every` epochs."""

    kind: Literal["step"] = "step"
    every: int = Field(30, ge=1)
    factor: float = Field(0.1, gt=0, le=1)


class CosineSchedule(Strict):
    """Anneals the learning rate to zero by a cosine."""

    kind: Literal["cosine"] = "cosine"


class OneCycleSchedule(Strict):
    """Warms up for the share `warmup` of all steps, then anneals by a cosine (Smith and Topin 2018, arXiv:1708.07120)."""

    kind: Literal["one_cycle"] = "one_cycle"
    warmup: float = Field(0.3, gt=0, lt=1)


Optimizer = Annotated[Annotated[Sgd | AdamW, Field(discriminator="kind")], BeforeValidator(kind)]


Schedule = Annotated[
    Annotated[StepSchedule | CosineSchedule | OneCycleSchedule, Field(discriminator="kind")], BeforeValidator(kind)
]


class Ema(Strict):
    """Exponential moving average of the weights, over steps."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.999, gt=0, lt=1)


class Swa(Strict):
    """Mean of the weights at the ends of the last epochs (Izmailov et al. 2018, arXiv:1803.05407); `last` is their share."""

    kind: Literal["swa"] = "swa"
    last: float = Field(0.25, gt=0, le=1)  # share of the epochs


Average = Annotated[Annotated[Ema | Swa, Field(discriminator="kind")], BeforeValidator(kind)]


class Cycles(Strict):
    """How a training's epochs are shared among its snapshots: a long first cycle, then short ones (Garipov et al. 2018).

    Attributes:
        first: Share of the epochs that the first cycle has. The others share the rest equally.
        rate: Share of the learning rate at which the later cycles start.
    """

    first: float = Field(gt=0, lt=1)  # the first cycle's share of the epochs; the others have equal shares of the rest
    rate: float = Field(1.0, gt=0, le=1)  # the share of the learning rate at which the others start


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
    if name not in AUGMENTS:
        raise ValueError(f"unknown augmentation {name!r}; known are {', '.join(AUGMENTS)}")
    default, largest, meaning = AUGMENTS[name]
    strength = default if strength is None else strength
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= largest:
        raise ValueError(f"the strength of {name} is its {meaning}: a number above 0, at most {largest:g}")
    return Augment(name=name, strength=float(strength))


def _no_augment_twice(value: tuple[Augment, ...]) -> tuple[Augment, ...]:
    names = [a.name for a in value]
    if len(set(names)) < len(names):
        raise ValueError("names an augmentation twice")
    return value


Augments = Annotated[tuple[Annotated[Augment, BeforeValidator(_augment)], ...], AfterValidator(_no_augment_twice)]
