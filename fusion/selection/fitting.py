"""Fit every fusion, calibrate it, and judge it on *fuse* by nested cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from fusion.fitting.cross_validation import splits_of
from fusion.interface import FUSIONS, FusionMethod, by_order
from fusion.methods.vote import Vote
from fusion.metrics.calibration import apply_temperature, fit_temperature, log_probabilities
from fusion.predictions import Floats, FusionInputs, Labels, Predictions, TeamPredictions, softmax


@dataclass
class FittedFusion:
    """A fitted fusion or single member, with its temperature.

    Attributes:
        name: Name of the fusion or the member.
        method: The fitted method.
        temperature: Temperature that calibrates its probabilities.
        nested: (n_fuse, C) probabilities on *fuse*, each row predicted by a fit without it.
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
        """Restrict the team's predictions to the members that it was fitted on."""
        return predictions if self.members is None else predictions.only(self.members)

    def used(self, count: int) -> list[int]:
        """Return the positions of the members that it runs, in a team of `count`, in running order."""
        members = range(count) if self.members is None else self.members
        return [members[i] for i in self.method.used(len(members))]


class Single(Vote):
    """A single member as a fusion.

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
    """Fit one fusion on all of *fuse*, and judge it by nested cross-validation.

    The temperature is fitted to predictions of held-out rows: on rows that a head was fitted on, it would be overconfident.

    Args:
        name: Name of the fusion.
        make_method: Returns an unfitted method.
        inputs: Data that the fusion may learn from.
    """
    fuse = inputs.fuse
    splits = splits_of(fuse)
    method, *without = make_method().fit_nested(inputs, [held_out for _, held_out in splits])
    raw = method.predict_proba(fuse)
    for inner, (_, held_out) in zip(without, splits, strict=True):
        raw[held_out] = inner.predict_proba(fuse.take(held_out))
    nested = raw.copy()
    for fitted, held_out in splits:
        nested[held_out] = apply_temperature(raw[held_out], _fit_last_stage(raw[fitted], fuse.labels[fitted]))
    return FittedFusion(name, method, _fit_last_stage(raw, fuse.labels), nested)


def _fit_last_stage(probabilities: Floats, labels: Labels) -> float:
    """Fit a temperature to probabilities (n, C) of rows that the method was not fitted on."""
    return fit_temperature(log_probabilities(probabilities), labels)


def fit_all(
    team: TeamPredictions,
    fusions: Sequence[str],
    during: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> dict[str, FittedFusion]:
    """Fit every single member as a candidate, and then the fusions, in the order of tables.

    A fusion that cannot use the team's predictions is left out; `left_out` gives the reason.

    Args:
        team: The team's predictions.
        fusions: Names of the fusions to fit.
        during: Returns a context manager that wraps the fitting of a fusion, or of all members.

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
    """Return a sentence for each fusion that cannot use the team's predictions."""
    reasons = {name: FUSIONS[name].why_impossible(team.inputs) for name in by_order(fusions)}
    return [f"{name} was left out: {reason}." for name, reason in reasons.items() if reason]
