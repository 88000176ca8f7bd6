"""Draw the report's plots, from the content of fusion.json and the histories of the full trainings.

The plots are SVG files whose text stays text, so a browser draws class names in any script with the fonts of its system.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusion.results import FusionDetails
from workers.diagnostics.callback import held_out_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Histories = dict[str, list[dict[str, float]]]
LONGEST_LABEL = 24  # characters


def _shortened(names: Sequence[str]) -> list[str]:
    """Shorten axis labels, so that long names leave room for the plot."""
    return [name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…" for name in names]


def all_plots(details: FusionDetails, histories: Histories) -> dict[str, Figure]:
    """Return all plots, keyed by their names in the report.

    Args:
        details: What the fusion step returned.
        histories: Metrics of each epoch of each member's full training.
    """
    return {
        "costs": costs(details),
        "votes": votes(details),
        "reliability": reliability(details),
        "disagreement": disagreement(details),
        "confusion": confusion(details),
        "classes": classes(details),
        "curves": curves(histories),
    }


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as an SVG file."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib's own font lacks letters that the browser's have
        figure.savefig(path, format="svg", bbox_inches="tight")


def _figure(width: float = 7.0, height: float = 3.6) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def curves(histories: Histories) -> Figure:
    """Plot training loss and accuracy on held-out rows against epochs, for each member."""
    figure = _figure(9)
    plotted: dict[str, dict[str, list[float | None]]] = {
        "training loss": {name: [epoch["train/loss"] for epoch in history] for name, history in histories.items()},
        "accuracy on held-out images": {
            name: [held_out_metric(epoch, "accuracy") for epoch in history] for name, history in histories.items()
        },
    }
    for index, (label, by_member) in enumerate(plotted.items()):
        axes = figure.add_subplot(1, 2, index + 1)
        for name, values in by_member.items():
            axes.plot(range(1, len(values) + 1), [np.nan if value is None else value for value in values], label=name)
        axes.set(xlabel="epoch", title=label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure


def costs(details: FusionDetails) -> Figure:
    """Plot accuracy with intervals against training cost, for each candidate."""
    figure = _figure()
    axes = figure.add_subplot()
    for name, row in details.candidates.items():
        scores = row.test or row.fuse
        is_recommended = name == details.recommended
        low, high = row.interval or (scores.accuracy, scores.accuracy)
        spread = [[(scores.accuracy - low) * 100], [(high - scores.accuracy) * 100]]
        position = ([row.train_cost], [scores.accuracy * 100])
        axes.errorbar(*position, yerr=spread, fmt="s" if is_recommended else "o", capsize=3, label=name)
    axes.set(xlabel="training cost, multiples of one member", ylabel="accuracy, %")
    axes.set_title("Accuracy against cost (95 % intervals)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure


def classes(details: FusionDetails) -> Figure:
    """Plot the accuracy of each class on *test*, for each candidate."""
    figure = _figure(9, 0.4 * len(details.candidates) + 1.6)
    axes = figure.add_subplot()
    per_class = {name: row.per_class for name, row in details.candidates.items() if row.per_class}
    names, values = list(per_class), [[100 * (v or 0) for v in accuracies] for accuracies in per_class.values()]
    if values:
        picture = axes.imshow(values, aspect="auto", cmap="viridis")
        figure.colorbar(picture, label="accuracy, %")
        axes.set_xticks(range(len(details.classes)), _shortened(details.classes), rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), _shortened(names))
    axes.set_title("Accuracy by class on the test rows")
    return figure


def votes(details: FusionDetails) -> Figure:
    """Plot the accuracy of a vote against its number of members."""
    figure = _figure()
    axes = figure.add_subplot()
    accuracies = details.diversity.vote_accuracy
    numbers = range(1, len(accuracies) + 1)
    axes.plot(numbers, [100 * accuracy for accuracy in accuracies], "o-")
    axes.set(xlabel="members in the vote", ylabel="accuracy, %", title="Accuracy of a vote, mean over subsets of members")
    axes.set_xticks(numbers)
    axes.grid(alpha=0.3)
    return figure


def reliability(details: FusionDetails) -> Figure:
    """Plot accuracy against confidence for the recommended candidate and the best single member."""
    figure = _figure(4.6, 4.2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for name in dict.fromkeys((details.recommended, details.best_single)):
        points = details.candidates[name].reliability
        if points:
            axes.plot([p.confidence for p in points], [p.accuracy for p in points], "o-", label=name)
    axes.set(xlabel="confidence", ylabel="accuracy", title="Reliability on the test rows")
    axes.grid(alpha=0.3)
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False)
    return figure


def disagreement(details: FusionDetails) -> Figure:
    """Plot the percentage of *fuse* rows on which exactly one of two members is right."""
    names = list(details.diversity.confusion)
    share = [[0.0] * len(names) for _ in names]
    for pair in details.diversity.pairs:
        i, j = names.index(pair.first), names.index(pair.second)
        share[i][j] = share[j][i] = 100 * pair.disagreement
    side = 0.5 * len(names) + 2.6
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    figure.colorbar(axes.imshow(share, cmap="Blues"), label="% of rows")
    largest = max(map(max, share))
    axes.set_xticks(range(len(names)), _shortened(names), rotation=45, ha="right")
    axes.set_yticks(range(len(names)), _shortened(names))
    for i, row in enumerate(share):
        for j, value in enumerate(row):
            if i != j:
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="white" if value > 0.6 * largest else "black")
    axes.set_title("Rows that exactly one of two members gets right")
    return figure


def confusion(details: FusionDetails) -> Figure:
    """Plot the off-diagonal part of each member's confusion matrix on *fuse*."""
    matrices = details.diversity.confusion
    columns = min(3, len(matrices))
    lines = -(-len(matrices) // columns)
    figure = _figure(3.4 * columns, 3.4 * lines)
    for index, (name, matrix) in enumerate(matrices.items()):
        axes = figure.add_subplot(lines, columns, index + 1)
        _mistakes(axes, matrix, details.classes)
        axes.set_title(name)
    return figure


def _mistakes(axes: Axes, matrix: list[list[int]], names: Sequence[str]) -> None:
    wrong = [[0 if i == j else count for j, count in enumerate(row)] for i, row in enumerate(matrix)]
    axes.imshow(wrong, cmap="magma")
    ticks = range(len(names)) if len(names) <= 12 else []
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90, parse_math=False)  # a folder may be named $x$
    axes.set_yticks(ticks, [names[i] for i in ticks], parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
