"""Between a spool or a home and the tracking store: what is sent, and finished fits that are taken from there."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

from workers.artifact import MemberArtifact
from workers.errors import Corrupt
from workers.spool import Spool
from workers.tracking import Refused, Tracking

BATCH = 50


def deliver(spool: Spool, tracking: Tracking | None = None, until: float | None = None) -> int:
    """Send what wasn't sent yet, in order; gives how many entries. Raises what the store raises; what is sent is marked.

    `until` is a time.monotonic() after which nothing more is begun.
    """
    tracking = tracking or Tracking(spool.uri)
    count = 0
    while (batch := spool.unsent()[:BATCH]) and (until is None or time.monotonic() < until):
        try:
            tracking.send([entry for entry, _ in batch])
        except Refused:
            _one_by_one(spool, tracking, batch)
        spool.mark(batch[-1][1])
        count += len(batch)
    return count


def _one_by_one(spool: Spool, tracking: Tracking, batch: list[tuple[dict[str, Any], int]]) -> None:
    """So that an entry which nobody will ever take does not hold up the others."""
    for entry, end in batch:
        with contextlib.suppress(Refused):
            tracking.send([entry])
        spool.mark(end)


def take(artifact: MemberArtifact, tracking: Tracking, run: str | None) -> bool:
    """Make a finished fit of a run this home's own. Gives whether the run has it, whole."""
    if run is None:
        return False
    with tempfile.TemporaryDirectory() as work:
        found = tracking.fetch(run, "fit", Path(work))
        if found is None or not MemberArtifact(found.parent).done:
            return False
        try:
            artifact.adopt(found)
        except Corrupt:  # cut off on its way, or damaged there
            return False
    return True
