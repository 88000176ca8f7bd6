"""Send outboxes to the tracking store, and download finished trainings from it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workers.diagnostics.logs import DRIVER
from workers.errors import CorruptFileError
from workers.storage.artifacts import MemberArtifact
from workers.tracking.entries import ArtifactEntry, Entry, ModelEntry, RefusedEntryError
from workers.tracking.outbox import Outbox

if TYPE_CHECKING:
    from workers.tracking.client import TrackingClient

BATCH = 10  # entries to send at once; a batch is never interrupted, so it must take little time


def flush_outbox(outbox: Outbox, tracking: TrackingClient | None = None, until: float | None = None) -> int:
    """Send the unsent entries in order, and mark each as sent. Other entries pass an artifact that is stuck.

    Args:
        outbox: The outbox.
        tracking: The store; by default the outbox's own.
        until: Value of time.monotonic() after which no new batch starts.

    Returns:
        The number of entries that were sent.

    Raises:
        Exception: Whatever the store raises while it is unreachable, or takes no artifact. Entries already sent stay marked.
    """
    from workers.tracking.client import TrackingClient  # imports MLflow

    if tracking is None and not outbox.uri:
        raise CorruptFileError(f"{outbox.path}: the line that names its tracking store is damaged. Sweep again to repair it.")
    tracking, unsent = tracking or TrackingClient(outbox.uri, outbox.uri == outbox.own_uri), outbox.unsent()
    delivery = _Delivery(outbox, tracking)
    for start in range(0, len(unsent), BATCH):
        if until is not None and time.monotonic() > until:
            return start
        delivery.send(unsent[start : start + BATCH])
    if delivery.problem:
        raise delivery.problem
    return len(unsent)


@dataclass
class _Delivery:
    """Sends batches of entries.

    Attributes:
        outbox: The outbox.
        tracking: The store.
        problem: Why an artifact is stuck; None while none is.
    """

    outbox: Outbox
    tracking: TrackingClient
    problem: Exception | None = None

    def send(self, batch: Sequence[tuple[Entry, int]]) -> None:
        """Send a batch, or its entries one by one if it can't be sent as a whole."""
        try:
            self.tracking.send([entry for entry, _ in batch])
        except Exception:  # a refused entry, a stuck artifact, or a store that does not answer
            for entry, end in batch:
                self._send_one(entry, end)
        else:
            self.outbox.mark_sent([end for _, end in batch])

    def _send_one(self, entry: Entry, end: int) -> None:
        try:
            self.tracking.send([entry])
        except RefusedEntryError as error:
            said = "left out of run %s, for the tracking store refuses it: %s (%s)"
            DRIVER.warning(said, entry.run, type(entry).__name__, error)
        except Exception as error:
            if not isinstance(entry, ArtifactEntry | ModelEntry):
                raise
            self.problem = self.problem or error
            return
        self.outbox.mark_sent([end])


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
