"""Send outboxes to the tracking store, and download finished trainings from there."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from workers.errors import CorruptFileError
from workers.storage.artifacts import MemberArtifact
from workers.tracking.entries import Entry, RefusedEntryError
from workers.tracking.outbox import Outbox

if TYPE_CHECKING:
    from workers.tracking.client import TrackingClient

BATCH = 50  # entries that are sent at once, at most


def flush_outbox(outbox: Outbox, tracking: TrackingClient | None = None, until: float | None = None) -> int:
    """Send the entries that were not sent yet, in order, and mark each as sent.

    Args:
        outbox: The outbox.
        tracking: The store; the outbox's own where left out.
        until: A time.monotonic() after which no further batch is begun.

    Returns:
        The number of entries that were sent.

    Raises:
        Exception: Whatever the store raises while it is away. What was sent before stays marked.
    """
    from workers.tracking.client import TrackingClient  # imports MLflow

    if tracking is None and not outbox.uri:
        raise CorruptFileError(f"{outbox.path}: the line that names its tracking store is damaged. Sweep again: that mends it.")
    tracking = tracking or TrackingClient(outbox.uri)
    count, size = 0, BATCH if until is None else 1
    while (batch := outbox.unsent()[:size]) and (until is None or time.monotonic() < until):
        began = time.monotonic()
        try:
            tracking.send([entry for entry, _ in batch])
        except RefusedEntryError:
            _send_one_by_one(outbox, tracking, batch)
        outbox.mark_sent(batch[-1][1])
        count += len(batch)
        size = min(BATCH, 2 * size)
        if until is not None:  # none is broken off, so as many as the time is enough for
            each = (time.monotonic() - began) / len(batch)
            size = max(1, min(size, int((until - time.monotonic()) / max(each, 1e-3))))
    return count


def _send_one_by_one(outbox: Outbox, tracking: TrackingClient, batch: list[tuple[Entry, int]]) -> None:
    """Send entries one by one, so that one which the store will never take does not hold up the others."""
    for entry, end in batch:
        with contextlib.suppress(RefusedEntryError):
            tracking.send([entry])
        outbox.mark_sent(end)


def download_training(artifact: MemberArtifact, tracking: TrackingClient, run: str | None) -> bool:
    """Download the finished training of a run into this home.

    Returns:
        Whether the run had it, whole.
    """
    if run is None:
        return False
    with tempfile.TemporaryDirectory() as work:
        folder = tracking.download(run, "fit", Path(work))
        if folder is None or not MemberArtifact(folder.parent).done:
            return False
        try:
            artifact.import_folder(folder)
        except CorruptFileError:  # cut off on its way, or damaged there
            return False
    return True
