"""Describe the input of the fusion step: locations of finished trainings, and what to fit. Light to import."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.config.team import Team
from workers.config.specs import MemberRecord
from workers.storage.artifacts import MemberArtifact

if TYPE_CHECKING:
    from orchestrator.home import SweepFolder
    from orchestrator.planning.plan import Plan, PlannedMember
    from orchestrator.results import MemberState
    from orchestrator.tracking.sweep_runs import SweepRuns


@dataclass(frozen=True)
class ArtifactLocation:
    """The location of a finished training: its tracking run, and its folder in the home."""

    run: str | None
    root: Path

    def download(self, uri: str | None) -> Path:
        """Return a local folder that holds the artifact: the home's, or one from the tracking store `uri`."""
        if MemberArtifact(self.root).done or not (uri and self.run):
            return self.root
        from workers.tracking.client import TrackingClient  # imports MLflow, so only if needed

        folder = TrackingClient(uri).download(self.run, "fit")
        return folder.parent if folder and MemberArtifact(folder.parent).done else self.root


@dataclass(frozen=True)
class FusionRequest:
    """Everything the fusion step needs. It is sent to the fusion actor unchanged.

    Attributes:
        sweep: The sweep's folder.
        team: The team, with the fusions to fit.
        members: The finished members.
        full: Location of each member's full training.
        folds: Locations of the fold trainings, for members whose fold trainings are all done.
        store: Folder of the packed data.
        split: Key of its split.
        uri: The tracking store, or None to use the home alone.
        import_paths: Folders from which custom modules are imported.
        provenance: Provenance to record in the exported model.
        student: The student and the location of its training, if it is done.
        searched: Search seconds of each member's recipe.
    """

    sweep: Path
    team: Team
    members: Mapping[str, MemberRecord]
    full: Mapping[str, ArtifactLocation]
    folds: Mapping[str, Sequence[ArtifactLocation]]
    store: Path
    split: str
    uri: str | None
    import_paths: tuple[str, ...]
    provenance: Mapping[str, Any]
    student: tuple[MemberRecord, ArtifactLocation] | None = None
    searched: Mapping[str, float] = field(default_factory=dict)


Precision = Literal["int8", "float16"]


@dataclass(frozen=True)
class ExportOptions:
    """Options of an exported model.

    Attributes:
        abstains: True to also output prediction sets and the members' disagreement.
        coverage: Share of new images whose class the sets hold; None for one that says more than the accuracy.
        level: Level of the sets; None to fit it on nested predictions.
        flips: True to also run its networks on each image flipped left to right.
        precisions: Number formats to also write it in.
    """

    abstains: bool = False
    flips: bool = False
    precisions: tuple[Precision, ...] = ()
    coverage: float | None = None
    level: float | None = None


def make_request(
    plan: Plan, members: Mapping[str, MemberState], folder: SweepFolder, runs: SweepRuns | None = None
) -> FusionRequest:
    """Return the request for the finished members.

    Args:
        plan: The plan.
        members: State of each member, from `member_states`.
        folder: The sweep's folder.
        runs: The sweep's runs; without them, only the home is used.
    """
    specs = {m.name: m for m in plan.team.members if members[m.name].is_done}
    run_ids = runs.ids if runs else {}

    def location(planned: PlannedMember) -> ArtifactLocation:
        return ArtifactLocation(run_ids.get(planned.signature), planned.artifact.root)

    planned, student = {name: plan.of_member(name) for name in specs}, plan.student
    has_student = student and len(specs) == len(members) and student.artifact.done
    return FusionRequest(
        sweep=folder.path.absolute(),
        team=plan.team,
        members=specs,
        full={name: location(of_member[0]) for name, of_member in planned.items()},
        folds={n: [location(p) for p in of[1:]] for n, of in planned.items() if of[1:] and members[n].reason is None},
        store=plan.store.folder.absolute(),
        split=plan.split.key,
        uri=runs.tracking.uri if runs else None,
        import_paths=plan.jobs[0].import_paths,
        provenance={
            "sweep": plan.team.name,
            "data_digest": plan.store.digest,
            "member_weights": {n: members[n].weights_sha256 for n in specs},
            "commit": code_commit(),
        },
        student=(student.job.recipe.record(student.member), location(student)) if student and has_student else None,
        searched=plan.searched,
    )


def code_commit() -> str:
    """Return the commit of this code, or "unknown" outside a repository or without git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git, as in a container image
        return "unknown"
    return answer.stdout.strip() or "unknown"
