"""Warn about likely problems of members and fusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from fusion.metrics.paired import Sample, compare_losses
from fusion.metrics.scores import is_at_chance, mean_interval, row_losses
from fusion.predictions import TeamPredictions
from fusion.selection.fitting import FittedFusion, left_out
from workers.diagnostics.callback import Epoch, held_out_metric

LAST_EPOCHS_SHARE = 0.1  # last share of the epochs, by which a long enough training has converged
MIN_ACCURACY_GAIN, MIN_LOSS_GAIN = 0.01, 0.03  # minimum improvement in accuracy, and as a share of the loss
MIN_GAIN_STANDARD_ERRORS = 2.0  # minimum improvement in accuracy, in standard errors


def warn(
    team: TeamPredictions,
    fitted: Mapping[str, FittedFusion],
    asked: Sequence[str],
    histories: Mapping[str, Sequence[Epoch]],
) -> list[str]:
    """Return a sentence for each likely problem.

    Args:
        team: The team's predictions.
        fitted: The candidates by name.
        asked: Names of the requested fusions.
        histories: Metrics per epoch of each member's full training, and of the student's.
    """
    warnings = left_out(team, asked)
    labels = team.inputs.fuse.labels
    for name in team.names:
        if is_at_chance(fitted[name].nested, labels, groups=team.inputs.fuse.groups):
            right = float((fitted[name].nested.argmax(1) == labels).mean())
            warnings.append(
                f"{name} is not surely better than guessing: it is right on {right:.0%} of the {len(labels):,} "
                f"{team.judged_on} rows. Look at its learning rate and its augmentation, or fuse without it: "
                f"`conclave fuse SWEEP --drop {name}`."
            )
    warnings += [text for name, history in histories.items() if (text := still_improving(name, history, len(labels)))]
    for name, fusion in fitted.items():
        if name not in team.names:
            inputs = team.inputs if fusion.members is None else team.inputs.only(fusion.members)
            if (doubts := fusion.method.doubts(name)) and not _is_significantly_better(name, fitted, team):
                warnings += doubts
            warnings += fusion.method.warnings(name, inputs)
            warnings += _worse_than_the_vote(name, fitted, team)
    return warnings


def still_improving(name: str, history: Sequence[Epoch], rows: int) -> str | None:
    """Return a warning if a training still improved a lot in its last epochs; None if it had converged.

    Args:
        name: The member.
        history: Metrics of each epoch.
        rows: Number of held-out rows behind these metrics.
    """
    last = max(1, ceil(LAST_EPOCHS_SHARE * len(history)))
    if len(history) <= last:
        return None
    (before, loss_before), (after, loss_after) = (
        (held_out_metric(epoch, "accuracy"), held_out_metric(epoch, "loss")) for epoch in (history[-1 - last], history[-1])
    )
    if before is None or after is None or loss_before is None or loss_after is None:
        return None
    points, error = after - before, (before * (1 - before) / rows) ** 0.5
    if points < max(MIN_ACCURACY_GAIN, MIN_GAIN_STANDARD_ERRORS * error) or loss_after > (1 - MIN_LOSS_GAIN) * loss_before:
        return None
    epochs = "epoch" if last == 1 else f"{last} epochs"
    return f"{name} still improved by {points * 100:.1f} points in its last {epochs}: train it for longer."


def _is_significantly_better(name: str, fitted: Mapping[str, FittedFusion], team: TeamPredictions) -> bool:
    """Return True if a fusion is significantly better than the vote on *fuse* rows it was not fitted on."""
    if "vote" not in fitted:
        return False
    fuse = team.inputs.fuse
    mine, of_vote = (row_losses(fitted[which].nested, fuse.labels) for which in (name, "vote"))
    return mean_interval(mine - of_vote, fuse.groups)[1] < 0


def _worse_than_the_vote(name: str, fitted: Mapping[str, FittedFusion], team: TeamPredictions) -> list[str]:
    """Return a warning if a fusion is significantly less accurate than the vote, else an empty list."""
    if "vote" not in fitted or name == "vote":
        return []
    labels = team.inputs.fuse.labels
    probabilities = {which: fitted[which].nested for which in (name, "vote")}
    if compare_losses(probabilities, "vote", Sample.of(team.inputs.fuse), "accuracy")[name].interval[0] <= 0:
        return []
    right, of_vote = (float((fitted[which].nested.argmax(1) == labels).mean()) for which in (name, "vote"))
    return [
        f"{name} is surely less often right than the vote: on {right:.1%} of the {len(labels):,} {team.judged_on} rows, and "
        f"the vote on {of_vote:.1%}."
    ]
