"""Compute the training costs of candidates, and find the best vote affordable at the same cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.metrics.calibration import apply_temperature, calibrated_losses, fit_temperature, log_probabilities
from fusion.metrics.scores import scores
from fusion.predictions import Floats, TeamPredictions, softmax
from fusion.results import MatchedVote
from fusion.selection.fitting import FittedFusion

ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class TrainingCost:
    """Training cost of one member, in seconds or in multiply-adds. A training of several members is counted once.

    Attributes:
        full: Cost of the full training, from its start until the member is finished.
        folds: Cost of each fold training, counted likewise.
        training: Unique id of the member's training; "" if it yields only this member.
        search: The member's share of the cost of the recipe search.
    """

    full: float
    folds: tuple[float, ...] = ()
    training: str = ""
    search: float = 0.0

    def of(self, fold: int | None = None) -> float:
        """Return the cost of a fold training, or of the full training if `fold` is None."""
        return self.full if fold is None else self.folds[fold]


def paid_for(name: str, fusion: FittedFusion, team: TeamPredictions, costs: Mapping[str, TrainingCost]) -> float:
    """Return the cost of all trainings that a candidate needs, in the unit of `costs`.

    A single member needs its full training. A stack also needs its fold trainings, a bagged stack only those, and a student also
    its teachers.

    Args:
        name: Name of the candidate.
        fusion: The fitted candidate.
        team: The team's predictions.
        costs: Cost of each member, and of the student.
    """
    if name in team.names:
        return costs[name].full + costs[name].search
    members = team.names if fusion.members is None else [team.names[i] for i in fusion.members]
    paid, total = fusion.method.pays_for, sum(costs[m].search for m in members)
    if "full" in paid:
        total += sum(by_training(members, costs).values())
    if "student" in paid:
        total += costs["student"].full
    if "folds" in paid:
        folds = range(max(len(costs[m].folds) for m in members))
        total += sum(sum(by_training(members, costs, fold).values()) for fold in folds)
    return total


def by_training(members: Sequence[str], costs: Mapping[str, TrainingCost], fold: int | None = None) -> dict[str, float]:
    """Return the cost of each training behind these members. Members of one training share its cost.

    Args:
        members: Names of the members.
        costs: Cost of each member.
        fold: Fold index, or None for the full trainings.
    """
    found: dict[str, float] = {}
    for name in members:
        training = costs[name].training or name
        found[training] = max(found.get(training, 0.0), costs[name].of(fold))
    return found


def increments(members: Sequence[str], costs: Mapping[str, TrainingCost], fold: int | None = None) -> list[float]:
    """Return the additional training cost of each member over the members before it in the list."""
    paid: dict[str, float] = {}
    found = []
    for name in members:
        training, until = costs[name].training or name, costs[name].of(fold)
        found.append(max(0.0, until - paid.get(training, 0.0)))
        paid[training] = max(paid.get(training, 0.0), until)
    return found


def compute_matched_vote(
    fusion: FittedFusion, seconds: float, team: TeamPredictions, costs: Mapping[str, TrainingCost]
) -> MatchedVote | None:
    """Find the best vote of the team's networks that is affordable within the same training time.

    Full trainings come first, then fold trainings, in rounds over the members. The number of rounds is chosen on *fuse*, because
    fold trainings of few epochs may not help.

    Args:
        fusion: The candidate to compare with.
        seconds: Training seconds of the candidate.
        team: The team's predictions.
        costs: Cost of each member.

    Returns:
        The vote, or None if no network is affordable or predictions of the fold trainings are missing.
    """
    members = list(range(len(team.names)) if fusion.members is None else fusion.members)
    networks = _affordable_networks(members, seconds, team, costs)
    if not networks:
        return None
    fuse, test, affordable = team.inputs.fuse, team.test, len(networks)
    counts = (*range(len(members), affordable, len(members)), affordable)
    votes = {n: _vote([logits for logits, _ in networks[:n]]) for n in counts}
    count = min(votes, key=lambda n: float(calibrated_losses(log_probabilities(votes[n]), fuse.labels).sum()))
    temperature = fit_temperature(log_probabilities(votes[count]), fuse.labels)
    on_fuse = scores(apply_temperature(votes[count], temperature), fuse.labels)
    if not len(test.labels):
        return MatchedVote(networks=count, fuse=on_fuse)
    vote = apply_temperature(_vote([on_test for _, on_test in networks[:count]]), temperature)
    return MatchedVote(
        networks=count,
        fuse=on_fuse,
        test=scores(vote, test.labels),
    )


def _affordable_networks(
    members: list[int], seconds: float, team: TeamPredictions, costs: Mapping[str, TrainingCost]
) -> list[tuple[Floats, Floats]]:
    """Return the *fuse* and *test* logits of the networks affordable in `seconds`; empty if predictions are missing."""
    names = [team.names[m] for m in members]
    fuse, test = team.inputs.fuse, team.test
    costs_of_each = increments(names, costs)
    networks = [(fuse.logits[m], test.logits[m]) for m in members]
    if seconds > sum(costs_of_each) * ROUNDING:
        if fuse.folds is None or test.folds is None or np.isnan(fuse.folds[members]).any():
            return []
        for fold in range(fuse.folds.shape[1]):
            costs_of_each += increments(names, costs, fold)
            networks += [(fuse.folds[m, fold], test.folds[m, fold]) for m in members]
    return networks[: int((np.cumsum(costs_of_each) <= seconds * ROUNDING).sum())]


def _vote(logits: list[Floats]) -> Floats:
    return np.asarray(softmax(np.stack(logits)).mean(0))
