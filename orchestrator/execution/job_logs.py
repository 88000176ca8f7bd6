"""Write one log file per job: its events, and the tracebacks of its failures."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.execution.executor import Event, OnEvent
from workers.diagnostics.logs import DRIVER, append, log_name

FAILURES = ("retry", "failed", "diverged", "unschedulable")


@dataclass(frozen=True)
class JobLogs:
    """Logs a sweep's events, and passes each event on. The text of a failure ends with the path of its log.

    Attributes:
        folder: Folder of the logs.
        on_event: Called with every event, after it is logged.
    """

    folder: Path
    on_event: OnEvent

    def __call__(self, event: Event) -> None:
        """Log an event, and pass it on."""
        path = self.folder / log_name(event.job.label)
        if event.kind not in FAILURES:
            append(path, _line(event))
            self.on_event(event)
            return
        append(path, f"{_line(event)}\n{event.trace}".rstrip(), logging.ERROR)
        DRIVER.warning("%s: %s: %s", event.job.label, event.kind, event.text)
        self.on_event(replace(event, text=f"{event.text}; log: {path}"))


def _line(event: Event) -> str:
    metrics = " ".join(f"{name}={value:.6g}" for name, value in event.metrics.items() if name != "time")
    words = (event.kind, f"{event.epoch}" if event.kind == "epoch" else "", event.text, metrics)
    return " ".join(word for word in words if word)
