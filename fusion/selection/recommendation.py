"""Recommend the cheapest candidate that is not significantly worse than the best, judged on *fuse* alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion.interface import FUSIONS
from fusion.metrics.scores import (
    accuracy_gain,
    detectable,
    is_at_chance,
    loss_difference,
    row_losses,
    simultaneous_critical_value,
)
from fusion.predictions import Floats, TeamPredictions
from fusion.results import FEWEST_ROWS, METRIC_NAMES, Choice, Metric
from fusion.selection.fitting import FittedFusion
from fusion.selection.networks import Effort

CLEAR_P_VALUE = 0.01  # with few rows, the largest McNemar p-value at which the best score replaces the vote


def best_single(team: TeamPredictions, fitted: Mapping[str, FittedFusion], metric: Metric = "nll") -> str:
    """Return the member with the best nested score on *fuse*."""
    labels = team.inputs.fuse.labels
    return min(team.names, key=lambda name: float(row_losses(fitted[name].nested, labels, metric).mean()))


def recommend(
    team: TeamPredictions, fitted: Mapping[str, FittedFusion], efforts: Mapping[str, Effort], metric: Metric = "nll"
) -> tuple[str, Choice]:
    """Return the recommended candidate, and how it was chosen.

    It is the cheapest candidate that is not significantly worse than the one with the best score, by a paired bootstrap at 95 %
    for all candidates simultaneously. Dominated candidates are excluded. If there are too few rows to choose by, it is
    the vote, which learns nothing from them, unless even these rows show that the vote is worse.

    Args:
        team: The team's predictions.
        fitted: The candidates by name.
        efforts: Cost of each candidate.
        metric: The metric of the score.
    """
    labels = team.inputs.fuse.labels
    losses = {name: row_losses(fusion.nested, labels, metric) for name, fusion in fitted.items()}
    means = {name: float(values.mean()) for name, values in losses.items()}
    by_cost = cheapest_first(team.names, efforts)
    best = min(by_cost, key=means.__getitem__)
    errors = simultaneous_critical_value(losses, best)
    equal = [name for name in by_cost if loss_difference(losses[name], losses[best], errors).interval[0] <= 0]
    worthwhile = _worthwhile(by_cost, efforts, means)
    cheapest = next(name for name in worthwhile if name in equal)
    chosen = _without_learning(team.names, by_cost) or cheapest
    gain = accuracy_gain(fitted[best].nested, fitted[chosen].nested, labels)
    is_plain = chosen not in equal and gain.difference > 0 and gain.p <= CLEAR_P_VALUE
    is_decided = len(labels) >= FEWEST_ROWS or is_plain
    if is_decided:
        chosen = cheapest
    cheaper = [name for name in worthwhile if _is_cheaper(efforts[name], efforts[chosen])]
    rivals = _rivals(chosen, losses, equal, cheaper)
    return chosen, Choice(
        metric=metric,
        rows=len(labels),
        is_decided=is_decided,
        is_at_chance=all(is_at_chance(fusion.nested, labels, len(fitted)) for fusion in fitted.values()),
        best_score=best,
        equal=equal,
        lost=loss_difference(losses[chosen], losses[best], errors),
        next_cheaper=cheaper[-1] if cheaper else None,
        worth=loss_difference(losses[cheaper[-1]], losses[chosen], errors) if cheaper else None,
        detectable=max(loss_difference(losses[name], losses[chosen], errors).detectable for name in rivals),
        detectable_accuracy=max(detectable(fitted[name].nested, fitted[chosen].nested, labels) for name in rivals),
    )


def cheapest_first(members: Sequence[str], efforts: Mapping[str, Effort]) -> list[str]:
    """Sort candidates by multiply-adds of inference, then of training.

    At equal cost, members come before fusions, and fusions that learn nothing before other fusions.
    """

    def cost(name: str) -> tuple[float, float, int, int]:
        kind, order = (0, 0) if name in members else (1 if FUSIONS[name].learns_nothing else 2, FUSIONS[name].order)
        return efforts[name].inference, efforts[name].training, kind, order

    return sorted(efforts, key=cost)


def _rivals(chosen: str, losses: Mapping[str, Floats], equal: Sequence[str], cheaper: Sequence[str]) -> list[str]:
    """Return the candidates to compare with the chosen one for the smallest detectable difference.

    These are the candidates not significantly worse than the best; else the next cheaper candidate; else the next best; else the
    chosen one. Candidates with the same loss as the chosen one on every row are skipped. Dominated candidates count: without
    them, the loss exceeded the detectable difference in 12 of 100 teams of `benchmarks.verdicts`, with them in 6.
    """
    differing = [name for name in losses if not np.array_equal(losses[name], losses[chosen])]
    by_score = sorted(differing, key=lambda name: float(losses[name].mean()))
    close = [name for name in equal if name in differing]
    return close or [name for name in cheaper if name in differing][-1:] or by_score[:1] or [chosen]


def _worthwhile(by_cost: Sequence[str], efforts: Mapping[str, Effort], means: Mapping[str, float]) -> list[str]:
    """Return the Pareto front of cost and score, the cheapest first."""
    found: list[str] = []
    for name in by_cost:
        if found and means[name] >= means[found[-1]]:
            continue
        if found and efforts[name] == efforts[found[-1]]:
            found.pop()
        found.append(name)
    return found


def _is_cheaper(one: Effort, other: Effort) -> bool:
    return (one.inference, one.training) < (other.inference, other.training)


def _without_learning(members: Sequence[str], by_cost: Sequence[str]) -> str | None:
    """Return the cheapest fusion that learns nothing from *fuse*, or the only member of a team of one."""
    if len(members) == 1:
        return members[0]
    return next((name for name in by_cost if name not in members and FUSIONS[name].learns_nothing), None)


def why_chosen(chosen: str, choice: Choice, efforts: Mapping[str, Effort], members: Sequence[str]) -> str:
    """Explain in a clause why a candidate was chosen.

    Args:
        chosen: Name of the candidate.
        choice: How it was chosen.
        efforts: Cost of each candidate.
        members: Names of the members.
    """
    if list(members) == [chosen]:
        return "it is the only member, and there is nothing to combine"
    metric, rows = METRIC_NAMES[choice.metric], f"the {choice.rows:,} fuse rows"
    if not choice.is_decided and chosen in FUSIONS and FUSIONS[chosen].learns_nothing:
        return f"{rows} are too few to choose by, and {chosen} learns nothing from them"
    is_close = any(_is_cheaper(efforts[name], efforts[chosen]) for name in choice.equal)
    if chosen != choice.best_score:
        best = f"{choice.best_score}, which has the best {metric} on {rows}"
        rest = ", and no cheaper candidate scores better" if is_close else ""
        return f"it is the cheapest candidate that is not surely worse than {best}{rest}"
    rest = "nothing is cheaper"
    if choice.next_cheaper:
        rest = f"what is cheaper is surely worse{', or worse than something cheaper still' if is_close else ''}"
    return f"it has the best {metric} on {rows}, and {rest}"
