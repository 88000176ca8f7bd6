"""Reading what earlier versions wrote. No other module knows an old format.

Version 0.1.0 had a fusion `concat_tuned` (and `concat: {finetune: true}`, which asked for it). Earlier ones wrote manifests
without a checksum of their own. Before 0.3, trainings of several members were chains of trainings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.storage.checkpoints import Checkpoints

TUNED = "concat_tuned"
WHY_TUNED = (
    f"{TUNED} was removed in version 0.2.0: wherever it was measured, its own penalty switched it off. "
    "Take it out; `concat` gives the same answers in a fraction of the time."
)


def removed_settings(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Find what a team file asks for that no longer exists.

    Args:
        values: The values of a team file as they were written.

    Yields:
        The place of a setting in the file, and a sentence that says what to do about it.
    """
    fusions = values.get("fusion")
    if isinstance(fusions, tuple) and TUNED in fusions:
        yield ("fusion", fusions.index(TUNED)), f"fusion: {WHY_TUNED}"
    concat = values.get("concat")
    if isinstance(concat, Mapping) and concat.get("finetune") is True:
        yield ("concat", "finetune"), f"concat.finetune asks for concat_tuned. {WHY_TUNED}"


def without_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a team file's values without settings that no longer exist, so that finished homes still open."""
    remaining = {key: value for key, value in values.items() if key != "concat"}
    fusions = remaining.get("fusion")
    if isinstance(fusions, tuple) and TUNED in fusions:
        remaining["fusion"] = tuple(name for name in fusions if name != TUNED) or ("concat",)
    return remaining


def has_own_checksum(manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest carries a checksum of itself; the earliest ones do not."""
    return "sha256" in manifest


def checkpoint_folders(root: Path) -> tuple[Path, Path]:
    """Return the folders below a member's folder in which checkpoints may lie.

    Before 0.3 a snapshot, averaged weights and each network of a pack were trainings of their own, one after another. Each went
    on from the last checkpoint of the one before it, which that one had left in `last/`.
    """
    return root / "checkpoint", root / "last"


def adopt_checkpoint(own: Checkpoints, left_behind: Iterable[Checkpoints]) -> None:
    """Go on from where a chain of trainings of an earlier version ended, unless there are checkpoints of this version.

    Args:
        own: The checkpoints of the training.
        left_behind: Those that the trainings of the chain may have left.
    """
    if own.complete():
        return
    states = [state for checkpoints in left_behind if (state := checkpoints.newest())]
    if newest := max(states, key=lambda state: state.record.position, default=None):
        own.save(newest.tensors, newest.record)


def has_fold_outputs(outputs: Mapping[str, Any], part: str) -> bool:
    """Return whether a fold training has outputs on *fuse* or *test*; the earliest ones have out-of-fold outputs alone."""
    return f"{part}_logits" in outputs
