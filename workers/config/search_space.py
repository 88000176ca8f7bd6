"""Describe the search space of a recipe search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from workers.config.extensions import OPTIMIZERS
from workers.config.recipe import check_strength
from workers.config.strict import Strict


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] < value[1]:
        raise ValueError("expected a range like [0.001, 0.3]: two numbers above 0, the smaller one first")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_range)]


def _augment_range(value: Mapping[str, Range]) -> Mapping[str, Range]:
    for name, (_, high) in value.items():
        check_strength(name, high)
    return value


class SearchSpec(Strict):
    """The search space of a member's recipe. Trials are scored on a tenth of the *fit* rows; the best become members.

    Attributes:
        trials: Number of trials.
        keep: Number of recipes that become members.
        epochs: Maximum epochs of a trial. None means as many as a member.
        grace: Epochs that each trial trains before it may be stopped.
        lr: Range of learning rates, on a log scale.
        weight_decay: Range of weight decays, on a log scale.
        optimizer: Optimizers to choose from.
        augment: Range of strengths of each augmentation.
    """

    trials: int = Field(ge=2, le=1000)
    keep: int = Field(1, ge=1, le=100)
    epochs: int | None = Field(None, ge=1, le=10**5)
    grace: int = Field(1, ge=1, le=10**5)
    lr: Range | None = None
    weight_decay: Range | None = None
    optimizer: tuple[Annotated[str, OPTIMIZERS], ...] = ()
    augment: Annotated[dict[str, Range], AfterValidator(_augment_range)] = Field({})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.lr or self.weight_decay or self.augment):  # optimizer names alone would repeat the same few trials
            raise ValueError(
                "nothing to search; give a range of lr, weight_decay or augment. Compare optimizers alone by members"
            )
        if self.keep > self.trials:
            raise ValueError(f"keep is {self.keep}, but there are only {self.trials} trials")
        return self


Choice = dict[str, float | str]  # lr, weight_decay, optimizer, augment.NAME
