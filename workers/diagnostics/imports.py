"""Import heavy packages without a look for garbage among what they make: all of it stays."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Sequence


def import_all(modules: Sequence[str]) -> None:
    """Import modules one after another. Python's collector rests meanwhile, and never looks at what they made.

    No other thread may import anything at that time: of two that wait for each other, Python gives one a module half done.

    A module that can't be imported is left out: whoever needs it meets the error, and says it.
    """
    gc.disable()
    try:
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        gc.freeze()
    finally:
        gc.enable()
