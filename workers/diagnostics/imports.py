"""Import heavy packages without garbage collection, since their objects live as long as the process."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Sequence


def import_all(modules: Sequence[str]) -> None:
    """Import modules with the garbage collector off, and exempt their objects from later collections.

    No other thread may import meanwhile: if two imports wait for each other, Python hands one a half-initialized module.

    A module that can't be imported is skipped: the code that needs it raises the error.
    """
    gc.disable()
    try:
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        gc.freeze()
    finally:
        gc.enable()
