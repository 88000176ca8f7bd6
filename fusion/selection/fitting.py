"""Fit every fusion, calibrate it, and judge it on *fuse* by nested cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.model_selection import KFold

from fusion.methods.names import KNOWN, STACKS
from fusion.methods.registry import METHODS, FusionMethod
from fusion.methods.stacking import FittedHead, PlainHead, PlainStack, Stack, StackBag, fit_head, fit_plain_head
from fusion.methods.voting import Single
from fusion.metrics.calibration import apply_temperature, fit_temperature, log_probabilities
from fusion.predictions import Floats, FusionInputs, Predictions, TeamPredictions


@dataclass
class FittedFusion:
    """A fusion, or a single member, with its last stage.

    Attributes:
        name: Name of the fusion or the member.
        method: The fitted method.
        temperature: The last stage.
        nested: (n_fuse, C) probabilities on *fuse*, with everything refitted without the row that is predicted.
        members: Positions of the members that the fusion uses; None for all.
    """

    name: str
    method: Any
    temperature: float
    nested: Floats
    members: tuple[int, ...] | None = None

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return calibrated probabilities (n, C) from the predictions of all members of the team."""
        used = predictions if self.members is None else predictions.only(self.members)
        return apply_temperature(self.method.predict_proba(used), self.temperature)


def fit_fusion(name: str, make_method: Callable[[], FusionMethod], inputs: FusionInputs) -> FittedFusion:
    """Fit one fusion on all of *fuse*, and judge it by five-fold nested cross-validation.

    Args:
        name: Name of the fusion.
        make_method: Returns an unfitted method.
        inputs: What the fusion may learn from.
    """
    method, temperature = _fit_calibrated(make_method, inputs)
    nested = np.zeros(inputs.fuse.logits.shape[1:])
    rows = len(inputs.fuse.labels)
    for fitted_rows, held_out in KFold(min(5, rows), shuffle=True, random_state=1).split(np.arange(rows)):
        inner, inner_temperature = _fit_calibrated(make_method, inputs.with_fuse(fitted_rows))
        nested[held_out] = apply_temperature(inner.predict_proba(inputs.fuse.take(held_out)), inner_temperature)
    return FittedFusion(name, method, temperature, nested)


def _fit_calibrated(make_method: Callable[[], FusionMethod], inputs: FusionInputs) -> tuple[FusionMethod, float]:
    method = make_method().fit(inputs)
    return method, fit_temperature(log_probabilities(method.predict_proba(inputs.fuse)), inputs.fuse.labels)


def fit_all(team: TeamPredictions, fusions: Sequence[str]) -> dict[str, FittedFusion]:
    """Fit every member as a candidate of its own, and then the fusions, in the order of their inference cost.

    A fusion that the team has no predictions for is left out: a bag without fold trainings, a student that was not trained.

    Args:
        team: The team's predictions.
        fusions: Names of the fusions to fit.

    Returns:
        The candidates by name.
    """
    inputs, heads = team.inputs, _StackHeads(team.inputs)
    fitted = {n: fit_fusion(n, lambda i=i: Single(i), inputs) for i, n in enumerate(team.names)}  # type: ignore[misc]
    for name in (n for n in KNOWN if n in fusions):
        if (name == "stack_bag" and not can_bag(inputs)) or (name == "student" and inputs.fuse.student is None):
            continue
        if name in STACKS and inputs.with_oof:
            fitted[name] = fit_fusion(name, heads.method(name), inputs.only(inputs.with_oof))
            fitted[name].members = inputs.with_oof
        else:
            fitted[name] = fit_fusion(name, METHODS[name], inputs)
    return fitted


def can_bag(inputs: FusionInputs) -> bool:
    """Return whether the fold trainings, of all members that have them, have predictions on *fuse* too."""
    folds = inputs.fuse.folds
    return bool(inputs.with_oof) and folds is not None and not np.isnan(folds[list(inputs.with_oof)]).any()


class _StackHeads:
    """The heads that stacks learn from out-of-fold predictions, fitted once: no refit on a part of *fuse* changes them."""

    def __init__(self, inputs: FusionInputs) -> None:
        self.oof, self.folds = inputs.oof, inputs.folds

    @cached_property
    def shrunken(self) -> FittedHead:
        assert self.oof is not None
        return fit_head(self.oof, self.folds)

    @cached_property
    def plain(self) -> PlainHead:
        assert self.oof is not None
        return fit_plain_head(self.oof, self.folds)

    def method(self, name: str) -> Callable[[], FusionMethod]:
        if name == "stack_plain":
            return lambda: PlainStack(self.plain)
        return lambda: (StackBag if name == "stack_bag" else Stack)(head=self.shrunken)
