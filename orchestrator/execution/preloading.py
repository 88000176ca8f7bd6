"""Import heavy packages in a thread, while the main thread waits for something else."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from workers.diagnostics.imports import import_all

# What a sweep's driver needs next, the most urgent first: MLflow, PyTorch, and at last what draws the report.
OF_THE_DRIVER = ("workers.tracking.client", "workers.runtime.recipe_check", "orchestrator.reporting.plots", "jinja2")


def preload(modules: Sequence[str]) -> threading.Thread:
    """Import modules one after another in a thread, and return the thread."""
    thread = threading.Thread(target=import_all, args=(modules,), name="preload", daemon=True)
    thread.start()
    return thread
