"""Describe what a search of recipes may try."""

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
    """The settings to try in place of a member's own. Trials are scored on a tenth of the *fit* rows; the best become members.

    Attributes:
        trials: Number of trials.
        keep: Number of recipes that become members.
        epochs: Most epochs of a trial. None means as many as a member has.
        grace: Epochs that each trial trains before it may be stopped.
        lr: Range of learning rates, searched by their logarithm.
        weight_decay: Range of weight decays, searched by their logarithm.
        optimizer: Optimizers to choose from.
        augment: Range of strengths of each augmentation.
    """

    trials: int = Field(ge=2, le=1000)
    keep: int = Field(1, ge=1, le=100)
    epochs: int | None = Field(None, ge=1, le=10**5)  # the most that a trial trains; as many as a member where left out
    grace: int = Field(1, ge=1, le=10**5)  # epochs that each trial trains before it may be stopped
    lr: Range | None = None  # searched by its logarithm, as is the next
    weight_decay: Range | None = None
    optimizer: tuple[Annotated[str, OPTIMIZERS], ...] = ()
    augment: Annotated[dict[str, Range], AfterValidator(_augment_range)] = Field({})  # of strengths

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.lr or self.weight_decay or self.augment):  # by names alone the same would be tried again and again
            raise ValueError(
                "nothing to search; give a range of lr, weight_decay or augment. Compare optimizers alone by members"
            )
        if self.keep > self.trials:
            raise ValueError(f"keep is {self.keep}, but there are only {self.trials} trials")
        return self


Choice = dict[str, float | str]  # lr, weight_decay, optimizer, augment.NAME
