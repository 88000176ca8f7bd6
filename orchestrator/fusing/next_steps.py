"""Say what to do next for a better vote: what each step is forecast to gain, from what this sweep measured, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fusion.export.flips import predict_with_flips
from fusion.metrics.another_member import Expected, Vote, expected_gains
from fusion.metrics.scores import accuracy_and_nll_losses, evenly_drawn
from fusion.predictions import Labels, softmax
from fusion.results import Metric, NextStep, StepKind
from fusion.selection.networks import CandidateNetworks
from orchestrator.fusing.fitted_team import FittedTeam
from orchestrator.fusing.measurement import InferenceCost
from orchestrator.fusing.request import FusionRequest
from workers.data.store import Store
from workers.storage.artifacts import MemberArtifact

LONGER = 0.5  # the share of its epochs that a longer training has more
TEACHING = 1 / 3  # of the time of a student's training that each of its teachers takes
VOTED_NUMBERS = 30_000_000  # probabilities, in all votes that forecasts rest on: about a second
FLIPPED_MULTIPLY_ADDS = 2e11  # of all passes over mirror images: a few seconds on two cores
FEWEST_FLIPPED = 32


def next_steps(
    request: FusionRequest, fitted_team: FittedTeam, inference: Mapping[str, InferenceCost], improving: Sequence[str]
) -> list[NextStep]:
    """Return what may be done next, the step that is forecast to gain most for its training first.

    Args:
        request: The request.
        fitted_team: The fitted team.
        inference: What the inference of each candidate costs.
        improving: Names of members that still improved by much in their last epochs.

    Returns:
        The steps; those without a forecast come last. Nothing without a vote of several members.
    """
    if "vote" not in fitted_team.fitted or len(fitted_team.team.names) < 2:
        return []
    outlook = Outlook(request, fitted_team, inference)
    steps = [*outlook.recipes(), *outlook.seeds(), outlook.flips(), outlook.epochs(improving)]
    if not request.student:
        steps.append(outlook.student())
    return ranked(steps, request.metric)


def ranked(steps: Sequence[NextStep], metric: Metric) -> list[NextStep]:
    """Return steps that surely gain something by what they gain for each second of training, and then those that perhaps do.

    Those that gain nothing follow, and those without a forecast.
    """

    def key(step: NextStep) -> tuple[int, float]:
        expected = step.forecast(metric)
        if expected is None:
            return 3, 0.0
        if expected.mean <= 0:
            return 2, -expected.mean
        return int(expected.interval[0] <= 0), -expected.mean / max(step.train_seconds, 1e-9)

    return sorted(steps, key=key)


@dataclass(frozen=True)
class Outlook:
    """What is known of a team's next steps.

    Attributes:
        request: The request.
        fitted_team: The fitted team.
        inference: What the inference of each candidate costs.
    """

    request: FusionRequest
    fitted_team: FittedTeam
    inference: Mapping[str, InferenceCost]

    def recipes(self) -> list[NextStep]:
        """Forecast another member with a recipe of its own, from the recipes that just one training has."""
        alone = [group[0] for group in self._recipes.values() if len(group) == 1]
        if len(alone) < 2:  # there is no telling how recipes differ
            return []
        basis = f"what each of {len(alone)} recipes brings to the vote of the others"
        return [_forecast(self._training("recipe", alone, basis), self._vote.another(alone))]

    def seeds(self) -> list[NextStep]:
        """Forecast another seed of each recipe that has several. Fold trainings tell nothing of it: they are weaker networks."""
        found = []
        for group in self._recipes.values():
            if len(group) > 1:
                names = [" + ".join(self._made_by(training)) for training in group]
                basis = f"what each seed of this recipe brings: {', '.join(names)}"
                found.append(_forecast(self._training("seed", group, basis), self._vote.another(group), names[0]))
        basis = "no two members differ in their seed alone"
        return found or [self._training("seed", range(len(self._trainings)), basis)]

    def flips(self) -> NextStep:
        """Measure what the vote gains where its networks also see mirror images."""
        team, networks = self.fitted_team.team, self.fitted_team.networks
        rows = self._flipped_rows
        before = team.inputs.fuse.take(rows)
        images = torch.from_numpy(np.asarray(Store(self.request.store).images[team.fuse_rows[rows]]))
        after = predict_with_flips(before, CandidateNetworks(networks.full), images)
        losses = [
            accuracy_and_nll_losses(softmax(predictions.logits).mean(0), before.labels, self._temperature)
            for predictions in (before, after)
        ]
        command = f"conclave export {self.request.name} --method vote --flips"
        basis = f"measured on {len(rows):,} of the fuse rows; {command} makes such a model"
        return _forecast(self._step("flips", 0.0, 2.0, basis), expected_gains(losses[0] - losses[1]))

    def epochs(self, improving: Sequence[str]) -> NextStep:
        """Say what half as many epochs again cost, and whether the learning curves speak for it: they don't say how much."""
        basis = "a learning rate that falls until the end hides what more epochs would bring"
        if improving:
            verb = "improves" if len(improving) == 1 else "improve"
            basis += f"; but {', '.join(improving)} still {verb} a lot at the end, so it probably pays"
        else:
            basis += "; no member improves a lot at the end, so it probably brings little"
        seconds = LONGER * sum(self._seconds[training] for training in range(len(self._trainings)))
        return self._step("epochs", seconds, 1.0, basis)

    def student(self) -> NextStep:
        """Say what a student costs. What it would keep of the vote's gain is not known before one is trained."""
        members = len(self.fitted_team.team.names)
        seconds = float(np.mean(self._seconds)) * (1 + TEACHING * members)
        basis = "none was trained here; at best it answers as well as the vote, as one network"
        return self._step("student", seconds, 1 / members, basis)

    def _training(self, kind: StepKind, alike: Sequence[int], basis: str) -> NextStep:
        """Return a step that trains once more, as the trainings `alike` on average."""
        seconds = float(np.mean([self._seconds[i] for i in alike]))
        work = [sum(self.inference[name].multiply_adds for name in self._made_by(i)) for i in range(len(self._trainings))]
        share = float(np.mean([work[i] for i in alike])) / sum(work) if sum(work) else 1 / len(work)
        return self._step(kind, seconds, 1 + share, basis)

    def _step(self, kind: StepKind, seconds: float, compute: float, basis: str) -> NextStep:
        """Return a step with its price."""
        money = {machine: price * seconds / 3600 for machine, price in self.request.prices.items()}
        return NextStep(kind=kind, train_seconds=seconds, compute_cost=compute, money=money, basis=basis)

    @cached_property
    def _trainings(self) -> list[list[int]]:
        """The positions of the members that each training made."""
        found: dict[str, list[int]] = {}
        for i, name in enumerate(self.fitted_team.team.names):
            found.setdefault(json.dumps(self.request.members[name].recipe_fields(), sort_keys=True), []).append(i)
        return list(found.values())

    @cached_property
    def _recipes(self) -> dict[str, list[int]]:
        """The trainings of each recipe, by its settings without the seed."""
        found: dict[str, list[int]] = {}
        for training, members in enumerate(self._trainings):
            member = self.request.members[self.fitted_team.team.names[members[0]]]
            found.setdefault(json.dumps(member.recipe_fields("seed"), sort_keys=True), []).append(training)
        return found

    def _made_by(self, training: int) -> list[str]:
        return [self.fitted_team.team.names[i] for i in self._trainings[training]]

    @cached_property
    def _seconds(self) -> list[float]:
        """The seconds of each training: those of the last of the members that it made."""
        full = self.fitted_team.full
        return [
            max(MemberArtifact(full[name]).manifest().total_seconds for name in self._made_by(training))
            for training in range(len(self._trainings))
        ]

    @property
    def _temperature(self) -> float:
        return self.fitted_team.fitted["vote"].temperature

    @cached_property
    def _vote(self) -> Vote:
        fuse = self.fitted_team.team.inputs.fuse
        votes = len(self._trainings) ** 2
        rows = evenly_drawn(len(fuse.labels), VOTED_NUMBERS // (votes * fuse.logits.shape[-1]))
        return Vote(softmax(fuse.logits[:, rows]), fuse.labels[rows], self._temperature, self._trainings)

    @property
    def _flipped_rows(self) -> Labels:
        """The positions of the *fuse* rows whose mirror images are looked at: as many as a few seconds allow."""
        work = sum(self.inference[name].multiply_adds for name in self.fitted_team.team.names)
        return evenly_drawn(len(self.fitted_team.team.fuse_rows), int(FLIPPED_MULTIPLY_ADDS / max(work, 1.0)), FEWEST_FLIPPED)


def _forecast(step: NextStep, gains: Expected | None, member: str | None = None) -> NextStep:
    """Return a step with its forecast, if there is one, and the member that it is about."""
    accuracy, nll = gains or (None, None)
    return step.model_copy(update={"member": member, "accuracy": accuracy, "nll": nll})
