"""Fit every fusion, calibrate it, and judge it on *fuse* by nested cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from fusion.fitting.cross_validation import shuffled_splits
from fusion.interface import FUSIONS, FusionMethod, by_order
from fusion.methods.vote import Vote
from fusion.metrics.calibration import apply_temperature, fit_temperature, log_probabilities
from fusion.predictions import Floats, FusionInputs, Predictions, TeamPredictions, softmax


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
    method: FusionMethod
    temperature: float
    nested: Floats
    members: tuple[int, ...] | None = None

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return calibrated probabilities (n, C) from the predictions of all members of the team."""
        return apply_temperature(self.method.predict_proba(self.narrowed(predictions)), self.temperature)

    def narrowed(self, predictions: Predictions) -> Predictions:
        """Return the predictions of the members that it was fitted on, from those of all members of the team."""
        return predictions if self.members is None else predictions.only(self.members)

    def used(self, count: int) -> list[int]:
        """Return the positions in a team of `count` members that it asks, in its order of asking."""
        members = range(count) if self.members is None else self.members
        return [members[i] for i in self.method.used(len(members))]


class Single(Vote):
    """One member alone, in the form of a fusion.

    Args:
        member: Position of the member.
    """

    def __init__(self, member: int) -> None:
        self.member = member

    def fit(self, inputs: FusionInputs) -> Self:
        """Give all weight to the member."""
        self.weights_ = np.eye(len(inputs.fuse.logits))[self.member]
        return self

    def predict_proba(self, predictions: Predictions) -> Floats:
        """Return probabilities (n, C)."""
        return softmax(predictions.logits[self.member])


def fit_fusion(name: str, make_method: Callable[[], FusionMethod], inputs: FusionInputs) -> FittedFusion:
    """Fit one fusion on all of *fuse*, and judge it by five-fold nested cross-validation.

    Args:
        name: Name of the fusion.
        make_method: Returns an unfitted method.
        inputs: What the fusion may learn from.
    """
    fuse, splits = inputs.fuse, shuffled_splits(len(inputs.fuse.labels))
    method, *without = make_method().fit_nested(inputs, [held_out for _, held_out in splits])
    nested = np.zeros(fuse.logits.shape[1:])
    for inner, (fitted, held_out) in zip(without, splits, strict=True):
        nested[held_out] = apply_temperature(inner.predict_proba(fuse.take(held_out)), _last_stage(inner, fuse.take(fitted)))
    return FittedFusion(name, method, _last_stage(method, fuse), nested)


def _last_stage(method: FusionMethod, predictions: Predictions) -> float:
    """Return the temperature of a fitted method, from the rows that it was fitted on."""
    return fit_temperature(log_probabilities(method.predict_proba(predictions)), predictions.labels)


def fit_all(
    team: TeamPredictions,
    fusions: Sequence[str],
    during: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> dict[str, FittedFusion]:
    """Fit every member as a candidate of its own, and then the fusions, in the order of tables.

    A fusion that cannot be made of the team's predictions is left out; `left_out` says why.

    Args:
        team: The team's predictions.
        fusions: Names of the fusions to fit.
        during: Returns a context for the time in which a fusion, or all members, are fitted.

    Returns:
        The candidates by name.
    """
    inputs = team.inputs
    with during("members"):
        fitted = {name: fit_fusion(name, partial(Single, i), inputs) for i, name in enumerate(team.names)}
    for name in by_order(fusions):
        method = FUSIONS[name]
        if method.why_impossible(inputs) is None:
            members = method.members_of(inputs)
            with during(name):
                fitted[name] = fit_fusion(name, method, inputs if members is None else inputs.only(members))
            fitted[name].members = members
    return fitted


def left_out(team: TeamPredictions, fusions: Sequence[str]) -> list[str]:
    """Return a sentence for each fusion that cannot be made of the team's predictions."""
    reasons = {name: FUSIONS[name].why_impossible(team.inputs) for name in by_order(fusions)}
    return [f"{name} was left out: {reason}." for name, reason in reasons.items() if reason]
