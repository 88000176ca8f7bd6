"""Fit all fusions of a team: finished trainings in, fitted candidates and their networks out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion.predictions import Outputs, TeamPredictions, TrainingFolders, load_predictions
from fusion.selection.fitting import FittedFusion, fit_all
from fusion.selection.networks import CandidateNetworks
from orchestrator.fusing.progress import Steps
from orchestrator.fusing.request import FusionRequest
from workers.config.own_code import import_from
from workers.config.specs import MemberSpec
from workers.data.splits import read_split
from workers.data.store import Store
from workers.models.network import Network
from workers.models.restore import restore
from workers.runtime.later_outputs import outputs_on
from workers.storage.artifacts import MemberArtifact


class Artifacts(TrainingFolders):
    """Folders of finished trainings, on this machine."""

    @classmethod
    def of(cls, request: FusionRequest) -> Artifacts:
        """Return the folders, downloading those that are not in the home."""
        return cls(
            {name: location.download(request.uri) for name, location in request.full.items()},
            {name: [location.download(request.uri) for location in places] for name, places in request.folds.items()},
            request.student[1].download(request.uri) if request.student else None,
        )

    def predictions(self, request: FusionRequest) -> TeamPredictions:
        """Return the predictions of the whole team."""
        store = Store(request.store)
        split = read_split(store, request.split)
        rows = np.concatenate([split.fuse, split.test])
        specs = {root: request.members[name] for name, root in self.full.items()}
        specs |= {root: request.members[name] for name, roots in self.folds.items() for root in roots}

        def read(root: Path) -> Outputs:
            return outputs_on(MemberArtifact(root), store, rows, specs.get(root))

        return load_predictions(self, store, split, read)


@dataclass(frozen=True)
class FittedTeam:
    """A team with its predictions, its fitted fusions and its networks.

    Attributes:
        team: The predictions.
        fitted: The candidates by name.
        networks: The networks; those of fold trainings only if a fusion uses them.
        artifacts: The folders of the trainings.
    """

    team: TeamPredictions
    fitted: dict[str, FittedFusion]
    networks: CandidateNetworks[Network]
    artifacts: Artifacts


def fit_team(request: FusionRequest, steps: Steps | None = None) -> FittedTeam:
    """Load the artifacts and fit every fusion. The same artifacts give the same fusions.

    Args:
        request: The request.
        steps: Records the duration of each step.
    """
    steps = steps or Steps()
    import_from(request.import_paths)
    with steps.step("reading the predictions"):
        store, artifacts = Store(request.store), Artifacts.of(request)
        team = artifacts.predictions(request)

    def network(root: Path, spec: MemberSpec) -> Network:
        return restore(MemberArtifact(root), store.classes, store.size, spec)

    fitted = fit_all(team, request.team.fusion, lambda name: steps.step(f"fitting {name}"))
    members = [network(artifacts.full[name], request.members[name]) for name in team.names]
    is_bagged = any(fusion.method.asks == "fold trainings" for fusion in fitted.values())
    bagged = team.names if is_bagged else ()
    networks = CandidateNetworks(
        members,
        [[network(root, request.members[name]) for root in artifacts.folds.get(name, ())] for name in bagged],
        network(artifacts.student, request.student[0]) if request.student and artifacts.student else None,
    )
    return FittedTeam(team, fitted, networks, artifacts)
