"""Recommend the cheapest candidate shown to be nearly as good as the best, judged on *fuse* alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fusion.interface import FUSIONS
from fusion.metrics.paired import Sample, compare_losses
from fusion.metrics.scores import is_at_chance
from fusion.predictions import TeamPredictions
from fusion.results import SHARES, Choice, LossDifference, Metric
from fusion.selection.fitting import FittedFusion
from fusion.selection.networks import Effort

MIN_ROWS, MIN_GROUPS = 100, 20  # with fewer, a fusion that learns from *fuse* does not compete
TOLERANCES: dict[Metric, float] = {"nll": 0.01, **dict.fromkeys(SHARES, 0.005)}


def best_single(team: TeamPredictions, fitted: Mapping[str, FittedFusion], metric: Metric = "nll") -> str:
    """Return the member with the best nested score on *fuse*."""
    sample = Sample.of(team.inputs.fuse)
    return min(team.names, key=lambda name: sample.loss(fitted[name].nested, metric))


def recommend(
    team: TeamPredictions,
    fitted: Mapping[str, FittedFusion],
    efforts: Mapping[str, Effort],
    metric: Metric = "nll",
    tolerance: float | None = None,
) -> tuple[str, Choice]:
    """Return the recommended candidate, and how it was chosen.

    It is the cheapest candidate whose loss is shown to exceed that of the best-scoring candidate by at most the tolerance
    (non-inferiority, one-sided 95 %, for all cheaper candidates at once); if no cheaper candidate can be shown to be that good,
    it is the best-scoring one. Dominated candidates are excluded. With few rows or groups, only members and fusions that learn
    nothing from *fuse* compete.

    Args:
        team: The team's predictions.
        fitted: The candidates by name.
        efforts: Cost of each candidate.
        metric: The metric of the score.
        tolerance: Largest acceptable loss beyond the best, in nats or as a share of the rows; None for the metric's default.
    """
    tolerance = TOLERANCES[metric] if tolerance is None else tolerance
    fuse = team.inputs.fuse
    sample = Sample.of(fuse)
    has_few_rows = sample.rows < MIN_ROWS or (sample.has_groups and sample.units < MIN_GROUPS)
    by_cost = cheapest_first(team.names, efforts)
    competing = [name for name in by_cost if not (has_few_rows and _learns_from_fuse(name, team.names))]
    nested = {name: fitted[name].nested for name in by_cost}
    losses = {name: sample.loss(nested[name], metric) for name in by_cost}
    best = min(competing, key=losses.__getitem__)
    cheaper = [name for name in competing if _cost(efforts[name]) < _cost(efforts[best])]
    behind = compare_losses({name: nested[name] for name in (*cheaper, best)}, best, sample, metric)
    front = pareto_front(competing, efforts, losses)
    chosen = next((name for name in front if name == best or behind[name].upper <= tolerance), best)
    return chosen, Choice(
        metric=metric,
        tolerance=tolerance,
        rows=sample.rows,
        judged_on=team.judged_on,
        groups=sample.units if sample.has_groups else None,
        has_few_rows=has_few_rows,
        is_at_chance=all(is_at_chance(p, fuse.labels, len(nested), fuse.groups) for p in nested.values()),
        best_score=best,
        competing=competing,
        cheaper=[name for name in front if _cost(efforts[name]) < _cost(efforts[chosen])],
        losses=losses,
        behind_best=behind,
        differences=compare_losses(nested, chosen, sample, metric),
        rows_needed={
            name: _rows_needed(sample.rows, behind[name], tolerance)
            for name in cheaper
            if 0 <= behind[name].difference < tolerance
        },
    )


def _rows_needed(rows: int, behind: LossDifference, tolerance: float) -> int:
    """Return how many rows bring the upper bound of a difference down to the tolerance: its width falls with their root."""
    return math.ceil(rows * ((behind.upper - behind.difference) / (tolerance - behind.difference)) ** 2)


def cheapest_first(members: Sequence[str], efforts: Mapping[str, Effort]) -> list[str]:
    """Sort candidates by multiply-adds of inference, then of training.

    At equal cost, members come before fusions, and fusions that learn nothing before other fusions.
    """

    def cost(name: str) -> tuple[float, float, int, int]:
        kind, order = (0, 0) if name in members else (1 if FUSIONS[name].learns_nothing else 2, FUSIONS[name].order)
        return *_cost(efforts[name]), kind, order

    return sorted(efforts, key=cost)


def pareto_front(by_cost: Sequence[str], efforts: Mapping[str, Effort], losses: Mapping[str, float]) -> list[str]:
    """Return the candidates that no other one beats: none scores as well at no more cost. The cheapest comes first.

    Args:
        by_cost: The candidates, the cheapest first.
        efforts: Cost of each candidate.
        losses: Loss of each candidate.
    """
    front: list[str] = []
    for name in by_cost:
        if front and losses[name] >= losses[front[-1]]:
            continue
        if front and efforts[name] == efforts[front[-1]]:
            front.pop()
        front.append(name)
    return front


def _cost(effort: Effort) -> tuple[float, float]:
    return effort.inference, effort.training


def _learns_from_fuse(name: str, members: Sequence[str]) -> bool:
    return name not in members and not FUSIONS[name].learns_nothing
