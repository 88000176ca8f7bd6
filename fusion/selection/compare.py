"""Compare the candidates: scores with intervals, gains with tests, training costs, and compute-matched votes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusion.interface import Description
from fusion.metrics.paired import Sample, accuracy_gain
from fusion.metrics.scores import accuracy_interval, detectable, holm, per_class, reliability, scores
from fusion.predictions import Floats, Labels, TeamPredictions
from fusion.results import Answer, Comparison, HardRow, Metric, ReliabilityPoint, TestResults
from fusion.selection.costs import TrainingCost, by_training, compute_matched_vote, paid_for
from fusion.selection.fitting import FittedFusion
from fusion.selection.recommendation import best_single

HARDEST = 12  # rows shown in the report


def compare(
    team: TeamPredictions, fitted: Mapping[str, FittedFusion], costs: Mapping[str, TrainingCost], metric: Metric = "nll"
) -> dict[str, Comparison]:
    """Return a comparison row for each single member and each fusion.

    Scores on *fuse* are nested. Scores on *test* are None without *test* rows.

    Args:
        team: The team's predictions.
        fitted: The candidates by name.
        costs: Training seconds of each member, and of the student.
        metric: The metric that selects the best single member.
    """
    single = best_single(team, fitted, metric)
    mean_seconds = float(np.mean(list(by_training(team.names, costs).values())))
    on_test = {name: _on_test(fusion, fitted[single], team, metric) for name, fusion in fitted.items()}
    p_values = {name: r.against_single.p for name, r in on_test.items() if r.against_single and name not in team.names}
    adjusted = holm(p_values)  # for one comparison per fusion
    rows = {}
    for name, fusion in fitted.items():
        seconds, is_fusion = paid_for(name, fusion, team, costs), name not in team.names
        description = _description(fusion, team) if is_fusion else Description()
        rows[name] = Comparison(
            **dict(on_test[name]),
            fuse=scores(fusion.nested, team.inputs.fuse.labels),
            temperature=fusion.temperature,
            train_seconds=seconds,
            train_cost=seconds / mean_seconds,
            chosen=description.words,
            weights=dict(description.weights),
            matched=compute_matched_vote(fusion, seconds, team, costs) if is_fusion else None,
            holm_p=adjusted.get(name),
        )
    return {name: _with_cost_per_point(row, rows[single]) for name, row in rows.items()}


def hardest_rows(team: TeamPredictions, fitted: Mapping[str, FittedFusion], chosen: str) -> list[HardRow]:
    """Return the hardest rows for a candidate, with each member's answer: of *test*, or *fuse* without *test* rows.

    Args:
        team: The team's predictions.
        fitted: The candidates by name.
        chosen: Name of the candidate.
    """
    is_tested = len(team.test.labels) > 0
    predictions, rows = (team.test, team.test_rows) if is_tested else (team.inputs.fuse, team.fuse_rows)

    def probabilities_of(fusion: FittedFusion) -> Floats:
        return fusion.predict_proba(predictions) if is_tested else fusion.nested

    def answer(p: Floats) -> Answer:
        return Answer(class_name=team.classes[int(p.argmax())], probability=float(p.max()))

    probabilities = probabilities_of(fitted[chosen])
    of_label = probabilities[np.arange(len(predictions.labels)), predictions.labels]
    singles = {name: probabilities_of(fitted[name]) for name in team.names}
    return [
        HardRow(
            row=int(rows[i]),
            label=team.classes[int(predictions.labels[i])],
            fused=answer(probabilities[i]),
            members={name: answer(p[i]) for name, p in singles.items()},
        )
        for i in np.argsort(of_label)[:HARDEST]
    ]


def _reliability_points(probabilities: Floats, labels: Labels) -> list[ReliabilityPoint]:
    """Return the points of the reliability diagram, empty bins left out."""
    return [
        ReliabilityPoint(confidence=float(c / n), accuracy=float(h / n), rows=int(n))
        for c, h, n in zip(*reliability(probabilities, labels), strict=True)
        if n
    ]


def _description(fusion: FittedFusion, team: TeamPredictions) -> Description:
    names = team.names if fusion.members is None else [team.names[i] for i in fusion.members]
    return fusion.method.describe(names, fusion.narrowed(team.test if len(team.test.labels) else team.inputs.fuse))


def _on_test(fusion: FittedFusion, single: FittedFusion, team: TeamPredictions, metric: Metric) -> TestResults:
    test = team.test
    if not len(test.labels):
        return TestResults()
    probabilities, of_single, sample = fusion.predict_proba(test), single.predict_proba(test), Sample.of(test)
    return TestResults(
        test=scores(probabilities, test.labels),
        interval=accuracy_interval((probabilities.argmax(1) == test.labels).astype(np.float64), test.groups),
        per_class=per_class(probabilities, test.labels),
        reliability=_reliability_points(probabilities, test.labels),
        against_single=accuracy_gain(probabilities, of_single, sample),
        detectable=detectable(probabilities, of_single, test.labels, test.groups),
        loss=sample.loss(probabilities, metric),
        loss_interval=sample.interval(probabilities, metric),
    )


def _with_cost_per_point(row: Comparison, single: Comparison) -> Comparison:
    """Add the cost per point: additional trainings per point of test accuracy over the best single member."""
    if not row.test or not single.test or row.test.accuracy <= single.test.accuracy:
        return row
    points = (row.test.accuracy - single.test.accuracy) * 100
    return row.model_copy(update={"cost_per_point": (row.train_cost - single.train_cost) / points})
