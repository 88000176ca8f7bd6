"""Import heavy packages in a thread, while the main thread waits for something else."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Sequence

# What a sweep's driver needs next, the most urgent first: MLflow, PyTorch, and at last what draws the report.
OF_THE_DRIVER = ("workers.tracking.client", "workers.runtime.recipe_check", "orchestrator.reporting.plots", "jinja2")


def preload(modules: Sequence[str]) -> threading.Thread:
    """Import modules one after another in a thread, and return the thread.

    A module that can't be imported is left out: whoever needs it meets the error, and says it.
    """

    def import_all() -> None:
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)

    thread = threading.Thread(target=import_all, name="preload", daemon=True)
    thread.start()
    return thread
