"""Compare the candidates side by side: scores with intervals, gains with tests, training costs, and compute-matched votes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusion.metrics.scores import accuracy_gain, bootstrap, detectable, holm, per_class, reliability, scores
from fusion.predictions import Floats, Labels, TeamPredictions
from fusion.selection.costs import Row, TrainingCost, compute_matched_vote, seconds_by_training, training_seconds
from fusion.selection.fitting import FittedFusion
from fusion.selection.recommendation import best_single


def compare(team: TeamPredictions, fitted: Mapping[str, FittedFusion], costs: Mapping[str, TrainingCost]) -> dict[str, Row]:
    """Return a row for each single member and each fusion.

    Scores on *fuse* are nested. Those on *test* are None where there are no *test* rows.

    Args:
        team: The team's predictions.
        fitted: The candidates by name.
        costs: Cost of each member, and of the student.
    """
    single = best_single(team, fitted)
    mean_seconds = float(np.mean(list(seconds_by_training(team.names, costs).values())))
    rows = {}
    for name, fusion in fitted.items():
        seconds = training_seconds(name, fusion, team, costs)
        rows[name] = {
            "fuse": scores(fusion.nested, team.inputs.fuse.labels),
            "temperature": fusion.temperature,
            "train_seconds": seconds,
            "train_cost": seconds / mean_seconds,
            "test": None,
            **({} if name in team.names else _choices(fusion, team)),
            **_on_test(fusion, fitted, single, team),
        }
        if name not in team.names:
            rows[name]["matched"] = compute_matched_vote(fusion, seconds, team, costs)
    _adjust_p_values(rows, team)
    for name, row in rows.items():
        row["cost_per_point"] = _cost_per_point(row, rows[single]) if name != single else None
    return rows


def hardest_rows(team: TeamPredictions, fitted: Mapping[str, FittedFusion], chosen: str, count: int = 12) -> list[Row]:
    """Return the rows that a candidate finds hardest, with each member's answer; of *test*, or of *fuse* without a test set.

    Args:
        team: The team's predictions.
        fitted: The candidates by name.
        chosen: Name of the candidate.
        count: Number of rows.
    """
    is_tested = len(team.test.labels) > 0
    predictions, rows = (team.test, team.test_rows) if is_tested else (team.inputs.fuse, team.fuse_rows)

    def probabilities_of(fusion: FittedFusion) -> Floats:
        return fusion.predict_proba(predictions) if is_tested else fusion.nested

    def answer(p: Floats) -> Row:
        return {"class": team.classes[int(p.argmax())], "probability": float(p.max())}

    probabilities = probabilities_of(fitted[chosen])
    of_label = probabilities[np.arange(len(predictions.labels)), predictions.labels]
    singles = {name: probabilities_of(fitted[name]) for name in team.names}
    return [
        {
            "row": int(rows[i]),
            "label": team.classes[int(predictions.labels[i])],
            "fused": answer(probabilities[i]),
            "members": {name: answer(p[i]) for name, p in singles.items()},
        }
        for i in np.argsort(of_label)[:count]
    ]


def _reliability_points(probabilities: Floats, labels: Labels) -> list[dict[str, float]]:
    """Return the points of the reliability diagram, empty bins left out."""
    return [
        {"confidence": float(c / n), "accuracy": float(h / n), "rows": int(n)}
        for c, h, n in zip(*reliability(probabilities, labels), strict=True)
        if n
    ]


def _choices(fusion: FittedFusion, team: TeamPredictions) -> Row:
    """Return what a fusion chose: the members' weights, and in words how it was fitted."""
    names = team.names if fusion.members is None else [team.names[i] for i in fusion.members]
    predictions = fusion.narrowed(team.test if len(team.test.labels) else team.inputs.fuse)
    description = fusion.method.describe(names, predictions)
    row: Row = {"chosen": description.words}
    if description.weights:
        row["weights"] = dict(description.weights)
    if description.asked is not None:
        row["asked"] = description.asked
    return row


def _on_test(fusion: FittedFusion, fitted: Mapping[str, FittedFusion], single: str, team: TeamPredictions) -> Row:
    test = team.test
    if not len(test.labels):
        return {}
    probabilities, of_single = fusion.predict_proba(test), fitted[single].predict_proba(test)
    of_vote = fitted["vote"].predict_proba(test) if "vote" in fitted else None
    return {
        "test": scores(probabilities, test.labels),
        "interval": bootstrap((probabilities.argmax(1) == test.labels).astype(np.float64)),
        "per_class": per_class(probabilities, test.labels),
        "reliability": _reliability_points(probabilities, test.labels),
        "against_single": accuracy_gain(probabilities, of_single, test.labels),
        "against_vote": None if of_vote is None else accuracy_gain(probabilities, of_vote, test.labels),
        "detectable": detectable(probabilities, of_single, test.labels),
    }


def _adjust_p_values(rows: dict[str, Row], team: TeamPredictions) -> None:
    """Add Holm-adjusted p-values of McNemar's test to the fusions: so many comparisons were made."""
    p_values = {name: row["against_single"][2] for name, row in rows.items() if name not in team.names and row["test"]}
    for name, p in holm(p_values).items():
        rows[name]["holm_p"] = p


def _cost_per_point(row: Row, single: Row) -> float | None:
    """Return the additional trainings per point of test accuracy gained over the single; None where nothing is gained."""
    if not row["test"] or row["test"]["accuracy"] <= single["test"]["accuracy"]:
        return None
    points = (row["test"]["accuracy"] - single["test"]["accuracy"]) * 100
    return float((row["train_cost"] - single["train_cost"]) / points)
