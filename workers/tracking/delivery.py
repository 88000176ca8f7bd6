"""Send outboxes to the tracking store, and download finished trainings from it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from workers.diagnostics.logs import DRIVER
from workers.errors import CorruptFileError
from workers.storage.artifacts import MemberArtifact
from workers.tracking.entries import RefusedEntryError
from workers.tracking.outbox import Outbox

if TYPE_CHECKING:
    from workers.tracking.client import TrackingClient

BATCH = 10  # entries to send at once; a batch is never interrupted, so it must take little time


def flush_outbox(outbox: Outbox, tracking: TrackingClient | None = None, until: float | None = None) -> int:
    """Send the unsent entries in order, and mark each as sent.

    Args:
        outbox: The outbox.
        tracking: The store; by default the outbox's own.
        until: Value of time.monotonic() after which no new batch starts.

    Returns:
        The number of entries that were sent.

    Raises:
        Exception: Whatever the store raises while it is unreachable. Entries already sent stay marked.
    """
    from workers.tracking.client import TrackingClient  # imports MLflow

    if tracking is None and not outbox.uri:
        raise CorruptFileError(f"{outbox.path}: the line that names its tracking store is damaged. Sweep again to repair it.")
    tracking, unsent = tracking or TrackingClient(outbox.uri, outbox.uri == outbox.own_uri), outbox.unsent()
    for start in range(0, len(unsent), BATCH):
        if until is not None and time.monotonic() > until:
            return start
        batch = unsent[start : start + BATCH]
        try:
            tracking.send([entry for entry, _ in batch])
        except RefusedEntryError:  # send one by one, so that a refused entry does not block the others
            for entry, _ in batch:
                try:
                    tracking.send([entry])
                except RefusedEntryError as error:
                    DRIVER.warning(
                        "left out of run %s, for the tracking store refuses it: %s (%s)", entry.run, type(entry).__name__, error
                    )
        outbox.mark_sent(batch[-1][1])
    return len(unsent)


def download_training(artifact: MemberArtifact, tracking: TrackingClient, run: str | None) -> bool:
    """Download the finished training of a run into this home.

    Returns:
        True if the run had a complete artifact.

    Raises:
        StoreUnavailableError: If the store does not answer.
    """
    if run is None:
        return False
    with tempfile.TemporaryDirectory() as work:
        folder = tracking.download(run, "fit", Path(work))
        if folder is None or not MemberArtifact(folder.parent).done:
            return False
        try:
            artifact.import_folder(folder)
        except CorruptFileError:  # truncated during the download, or damaged in the store
            return False
    return True
