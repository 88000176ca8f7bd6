"""What the fusion step is asked: where finished fits are, what to make of them. Without what the step itself imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.artifact import MemberArtifact
from workers.spec import DataSpec, MemberSpec
from workers.tracking import Tracking


@dataclass(frozen=True)
class Place:
    """Where a finished fit can be had: its tracking run, and its folder in the home."""

    run: str | None
    root: Path

    def fetch(self, uri: str | None) -> Path:
        """A local folder that holds `fit/`: in the home, else gathered through the tracking store."""
        if MemberArtifact(self.root).done or not (uri and self.run):
            return self.root
        found = Tracking(uri).fetch(self.run, "fit")
        return found.parent if found and MemberArtifact(found.parent).done else self.root


@dataclass(frozen=True)
class Request:
    """All that the fusion step needs; sent to the fusion actor as it is."""

    sweep: Path
    name: str
    members: Mapping[str, MemberSpec]
    full: Mapping[str, Place]
    folds: Mapping[str, Sequence[Place]]  # members with all their fold fits
    fusions: Sequence[str]
    data: DataSpec
    team_seed: int
    store: Path
    uri: str | None
    import_paths: tuple[str, ...]
    provenance: Mapping[str, Any]
    student: tuple[MemberSpec, Place] | None = None
    prices: Mapping[str, float] = field(default_factory=dict)  # of one trainer for an hour, by kind of machine
    searched: Mapping[str, float] = field(default_factory=dict)  # seconds of search that a member's recipe took
