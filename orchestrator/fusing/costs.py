"""Count what candidates cost: trainings in seconds and in multiply-adds, inference in multiply-adds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np

from fusion.selection.costs import TrainingCost, paid_for
from fusion.selection.networks import Effort
from orchestrator.fusing.fitted_team import FittedTeam
from orchestrator.fusing.measurement import InferenceCost
from workers.storage.artifacts import MemberArtifact
from workers.storage.training_record import TrainingRecord


def training_costs(
    fitted_team: FittedTeam, cost_of: Callable[[str, TrainingRecord], float], searched: Mapping[str, float]
) -> dict[str, TrainingCost]:
    """Return what the trainings of each member, and of the student, cost.

    Args:
        fitted_team: The fitted team.
        cost_of: Returns what a training cost, from the member's name and the training's record.
        searched: What finding each member's recipe cost.
    """
    costs = {}
    for name, root in fitted_team.full.items():
        record = MemberArtifact(root).manifest()
        folds = tuple(cost_of(name, MemberArtifact(fold).manifest()) for fold in fitted_team.folds.get(name, ()))
        training = json.dumps(record.member.recipe_fields(), sort_keys=True)
        costs[name] = TrainingCost(cost_of(name, record), folds, training, searched.get(name, 0.0))
    if fitted_team.student:
        costs["student"] = TrainingCost(cost_of("student", MemberArtifact(fitted_team.student).manifest()))
    return costs


def efforts(fitted_team: FittedTeam, inference: Mapping[str, InferenceCost]) -> dict[str, Effort]:
    """Return what each candidate costs in multiply-adds."""
    team = fitted_team.team
    rows = {fold: int((team.inputs.folds != fold).sum()) for fold in np.unique(team.inputs.folds)}

    def passes(name: str, record: TrainingRecord) -> float:
        """Return the multiply-adds of the forward passes of a training."""
        images = len(record.history) * (len(team.fit_rows) if record.fold is None else rows[record.fold])
        return images * inference[name].multiply_adds if name in inference else 0.0  # a student that no fusion asks

    trained = training_costs(fitted_team, passes, {})
    return {
        name: Effort(inference[name].multiply_adds, paid_for(name, fusion, team, trained))
        for name, fusion in fitted_team.fitted.items()
    }
