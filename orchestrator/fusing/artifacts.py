"""Find what the finished trainings of a request left, and read the predictions of the whole team."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion.predictions import LabelledRows, TeamPredictions, load_predictions
from orchestrator.fusing.request import FusionRequest
from workers.data.splits import get_split
from workers.data.store import Store


@dataclass(frozen=True)
class Artifacts:
    """Folders of finished trainings: each member's full one, its fold trainings, and the student's."""

    full: dict[str, Path]
    folds: dict[str, list[Path]]
    student: Path | None

    @classmethod
    def of(cls, request: FusionRequest) -> Artifacts:
        """Return the folders, downloaded where they are not in the home."""
        return cls(
            {name: location.download(request.uri) for name, location in request.full.items()},
            {name: [location.download(request.uri) for location in places] for name, places in request.folds.items()},
            request.student[1].download(request.uri) if request.student else None,
        )

    def predictions(self, request: FusionRequest) -> TeamPredictions:
        """Return the predictions of the whole team."""
        store = Store(request.store)
        split = get_split(store, request.data, request.team_seed)
        rows = LabelledRows(store.classes, np.asarray(store.labels), split.folds, split.fit)
        return load_predictions(self.full, self.folds, rows, self.student)
