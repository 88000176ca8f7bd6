"""Measure or forecast possible improvements of the vote: another member, or mirror images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fusion.export.flips import predict_with_flips
from fusion.metrics.scores import accuracy_and_nll_losses, evenly_drawn, mean_interval
from fusion.predictions import Floats, Labels, softmax
from fusion.results import ExpectedGain, NextStep
from fusion.selection.networks import CandidateNetworks
from orchestrator.fusing.costs import InferenceCost
from orchestrator.fusing.fitted_team import FittedTeam
from orchestrator.fusing.request import FusionRequest
from workers.data.store import Store
from workers.storage.artifacts import MemberArtifact

FLIPPED_MULTIPLY_ADDS = 2e11  # limit for all passes over mirror images: a few seconds on two cores
MIN_FLIPPED = 32


def next_steps(request: FusionRequest, fitted_team: FittedTeam, inference: Mapping[str, InferenceCost]) -> list[NextStep]:
    """Return suggested next steps; empty without a vote of several members.

    Args:
        request: The request.
        fitted_team: The fitted team.
        inference: Inference cost of each candidate.
    """
    if "vote" not in fitted_team.fitted or len(fitted_team.team.names) < 2:
        return []
    member = another_member(request, fitted_team)
    steps = [member] if member else []
    if fitted_team.team.is_out_of_fold:  # the full trainings saw the rows that a gain would be measured on
        return steps
    return [*steps, mirror_images(request, fitted_team, inference)]


def another_member(request: FusionRequest, fitted_team: FittedTeam) -> NextStep | None:
    """Forecast the gain of one more training like the team's; None if all members come from one training."""
    team, trainings = fitted_team.team, _trainings(request, fitted_team)
    if len(trainings) < 2:
        return None
    temperature = fitted_team.fitted["vote"].temperature
    gains = forecast_gains(softmax(team.inputs.fuse.logits), team.inputs.fuse.labels, temperature, trainings)
    records = [MemberArtifact(fitted_team.artifacts.full[team.names[members[-1]]]).manifest() for members in trainings]
    seconds = float(np.mean([record.total_seconds for record in records]))
    return NextStep(
        kind="member",
        accuracy=gains[0],
        nll=gains[1],
        train_seconds=seconds,
        compute_cost=1 + 1 / len(trainings),
        money={machine: price * seconds / 3600 for machine, price in request.team.prices.items()},
        basis=f"what each of the {len(trainings)} trainings brings to the vote of the others",
    )


def forecast_gains(
    probabilities: Floats, labels: Labels, temperature: float, trainings: Sequence[Sequence[int]]
) -> tuple[ExpectedGain, ExpectedGain]:
    """Forecast the gain of one more training, in accuracy and in NLL.

    The expected loss of a vote of k exchangeable members is a + b / k. So the last member gained b / (k (k - 1)), and one more
    gains (k - 1) / (k + 1) of that. The interval is the t prediction interval for one new training.

    Args:
        probabilities: (M, n, C) of the members, on rows that no member trained on.
        labels: (n,).
        temperature: The temperature of the vote.
        trainings: Member positions of each training; at least two trainings.
    """
    from scipy.stats import t as student_t

    def losses(members: Sequence[int]) -> Floats:
        """Return the mean losses (2,) of a vote of these members."""
        vote = probabilities[list(members)].mean(0)
        return np.asarray(accuracy_and_nll_losses(vote, labels, temperature).mean(1))

    count, everyone = len(trainings), range(len(probabilities))
    brought = np.array([losses([i for i in everyone if i not in made]) for made in trainings]) - losses(everyone)
    share = (count - 1) / (count + 1)
    half = student_t.ppf(0.975, count - 1) * brought.std(0, ddof=1) * np.sqrt(1 + 1 / count)
    means = brought.mean(0)
    accuracy, nll = (ExpectedGain(share * m, (share * (m - h), share * (m + h))) for m, h in zip(means, half, strict=True))
    return accuracy, nll


def mirror_images(request: FusionRequest, fitted_team: FittedTeam, inference: Mapping[str, InferenceCost]) -> NextStep:
    """Measure the gain of the vote if its networks also see mirror images."""
    team, networks = fitted_team.team, fitted_team.networks
    work = sum(inference[name].multiply_adds for name in team.names)
    rows = evenly_drawn(len(team.fuse_rows), int(FLIPPED_MULTIPLY_ADDS / max(work, 1.0)), MIN_FLIPPED)
    before = team.inputs.fuse.take(rows)
    images = torch.from_numpy(np.asarray(Store(request.store).images[team.fuse_rows[rows]]))
    after = predict_with_flips(before, CandidateNetworks(networks.full), images)
    temperature = fitted_team.fitted["vote"].temperature
    votes = [softmax(predictions.logits).mean(0) for predictions in (before, after)]
    losses = [accuracy_and_nll_losses(vote, before.labels, temperature) for vote in votes]
    gains = losses[0] - losses[1]  # (2, n)
    accuracy, nll = (ExpectedGain(float(gain.mean()), mean_interval(gain, before.groups)) for gain in gains)
    command = f"conclave export {request.team.name} --method vote --flips"
    return NextStep(
        kind="flips",
        accuracy=accuracy,
        nll=nll,
        train_seconds=0.0,
        compute_cost=2.0,
        basis=f"measured on {len(rows):,} of the fuse rows; {command} makes such a model",
    )


def _trainings(request: FusionRequest, fitted_team: FittedTeam) -> list[list[int]]:
    """Return the member positions of each training."""
    by_training: dict[str, list[int]] = {}
    for i, name in enumerate(fitted_team.team.names):
        by_training.setdefault(json.dumps(request.members[name].recipe_fields(), sort_keys=True), []).append(i)
    return list(by_training.values())
