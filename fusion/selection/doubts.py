"""Find labels that are probably wrong, and measure prediction sets for a model that can abstain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion.metrics.conformal import fit_level, prediction_sets, useful_coverage
from fusion.metrics.label_errors import doubt_labels
from fusion.predictions import Labels, Predictions, TeamPredictions
from fusion.results import Abstention, Answer, SuspectLabel
from fusion.selection.fitting import FittedFusion


def find_suspects(team: TeamPredictions) -> list[SuspectLabel]:
    """Return the rows whose label differs from the members' prediction, the most doubtful label first.

    Members judge only rows that they did not train on, so *fit* rows need out-of-fold predictions. Each part is judged on its
    own, because fold trainings are less confident than full trainings.

    Args:
        team: The team's predictions.
    """
    found: list[SuspectLabel] = []
    fit, fuse, test = (team.fit_rows, team.inputs.oof), (team.fuse_rows, team.inputs.fuse), (team.test_rows, team.test)
    judged = "fit" if team.is_out_of_fold else "fuse"
    for part, (rows, predictions) in (("fit", fit), (judged, fuse), ("test", test)):
        if predictions is not None and len(predictions.labels):
            found += _suspects_of(part, rows, predictions, team.classes)
    return sorted(found, key=lambda suspect: -suspect.wrong)


def _suspects_of(part: str, rows: Labels, predictions: Predictions, classes: Sequence[str]) -> list[SuspectLabel]:
    labels, doubts = predictions.labels, doubt_labels(predictions.logits, predictions.labels, predictions.groups)
    guesses = doubts.probabilities.argmax(1)
    return [
        SuspectLabel(
            row=int(rows[i]),
            part=part,
            label=classes[labels[i]],
            guess=Answer(class_name=classes[guesses[i]], probability=float(doubts.probabilities[i, guesses[i]])),
            of_label=float(doubts.probabilities[i, labels[i]]),
            wrong=float(doubts.wrong[i]),
        )
        for i in np.flatnonzero(guesses != labels)
    ]


def measure_abstention(team: TeamPredictions, chosen: FittedFusion) -> Abstention:
    """Measure the coverage and size of a candidate's prediction sets.

    Args:
        team: The team's predictions.
        chosen: The candidate.
    """
    coverage = useful_coverage(chosen.nested, team.inputs.fuse.labels)
    level = fit_level(chosen.nested, team.inputs.fuse.labels, coverage)
    is_tested = len(team.test.labels) > 0
    labels = team.test.labels if is_tested else team.inputs.fuse.labels
    sets = prediction_sets(chosen.predict_proba(team.test) if is_tested else chosen.nested, level)
    sizes = sets.sum(1)
    covered = float(sets[range(len(labels)), labels].mean())
    return Abstention(
        coverage=coverage,
        level=level,
        on_test=covered if is_tested else None,
        mean_size=float(sizes.mean()),
        certain=float((sizes == 1).mean()),
    )
