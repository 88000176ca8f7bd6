"""Recommend a candidate, on *fuse* alone."""

from __future__ import annotations

from collections.abc import Mapping

from fusion.interface import by_cost
from fusion.metrics.calibration import nll
from fusion.metrics.scores import nll_lower
from fusion.predictions import TeamPredictions
from fusion.selection.fitting import FittedFusion


def best_single(team: TeamPredictions, fitted: Mapping[str, FittedFusion]) -> str:
    """Return the member with the lowest nested NLL on *fuse*."""
    labels = team.inputs.fuse.labels
    return min(team.names, key=lambda name: nll(fitted[name].nested, labels))


def recommend(team: TeamPredictions, fitted: Mapping[str, FittedFusion]) -> tuple[str, str]:
    """Return the candidate to use, and why. A dearer candidate is taken only where it is surely better."""
    labels = team.inputs.fuse.labels
    chosen = best_single(team, fitted)
    why = f"{chosen} has the lowest NLL on fuse of the single members"
    for name in by_cost([name for name in fitted if name not in team.names]):
        probabilities, chosen_probabilities = fitted[name].nested, fitted[chosen].nested
        is_as_accurate = (probabilities.argmax(1) == labels).sum() >= (chosen_probabilities.argmax(1) == labels).sum()
        if is_as_accurate and nll_lower(probabilities, chosen_probabilities, labels):
            why = f"{name} has a lower NLL on fuse than {chosen} with 95 % confidence, and is not less accurate"
            chosen = name
    return chosen, why
