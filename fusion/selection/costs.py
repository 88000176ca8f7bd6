"""Count what the trainings of candidates cost, and find the vote that the same training would have paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.metrics.calibration import apply_temperature, calibrated_losses, fit_temperature, log_probabilities
from fusion.metrics.scores import accuracy_gain, scores
from fusion.predictions import Floats, TeamPredictions, softmax
from fusion.results import MatchedVote
from fusion.selection.fitting import FittedFusion

ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class TrainingCost:
    """What training one member cost, in seconds or in multiply-adds. A training that makes several members is paid for once.

    Attributes:
        full: Cost of the full training, from its start until the member was made.
        folds: The same of each fold training.
        training: What tells the member's training from others; "" where it makes this member alone.
        search: The member's share of what finding its recipe cost.
    """

    full: float
    folds: tuple[float, ...] = ()
    training: str = ""
    search: float = 0.0

    def of(self, fold: int | None = None) -> float:
        """Return the cost of a fold training, or of the full one, from its start until the member was made."""
        return self.full if fold is None else self.folds[fold]


def paid_for(name: str, fusion: FittedFusion, team: TeamPredictions, costs: Mapping[str, TrainingCost]) -> float:
    """Return what the trainings cost that had to be paid for a candidate, in the unit of `costs`.

    A single member pays for itself, a stack for its fold trainings too, a bag for those alone, a student for its teachers too.

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
    """Return the cost of each training that made these members. Several members of one training share it.

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
    """Return what each member costs beside those before it in the list: the part of its training that none of these needed."""
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
    """Find the best vote of the team's networks that the same training time would have paid for.

    Full trainings come first, then fold trainings, in rounds over the members. *Fuse* decides how many rounds vote, for fold
    trainings of few epochs may be no help.

    Args:
        fusion: The candidate to compare with.
        seconds: Training seconds of the candidate.
        team: The team's predictions.
        costs: Cost of each member.

    Returns:
        The vote. None where not one network is affordable, or where the fold trainings' predictions are not there.
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
        return MatchedVote(networks=count, affordable=affordable, fuse=on_fuse)
    vote = apply_temperature(_vote([on_test for _, on_test in networks[:count]]), temperature)
    return MatchedVote(
        networks=count,
        affordable=affordable,
        fuse=on_fuse,
        test=scores(vote, test.labels),
        gain_over_it=accuracy_gain(fusion.predict_proba(test), vote, test.labels),
    )


def _affordable_networks(
    members: list[int], seconds: float, team: TeamPredictions, costs: Mapping[str, TrainingCost]
) -> list[tuple[Floats, Floats]]:
    """Return the logits on *fuse* and *test* of the networks that `seconds` trained; none where predictions are missing."""
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
