"""Import heavy packages without a look for garbage among what they make: all of it stays."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import threading
from collections.abc import Sequence

# How much lower a priority is, and the lowest of all. Beside another process a core gives it a tenth, and three tenths where the
# other one is a worker of Ray's, which has a low priority already.
LOW, LOWEST = 10, 19


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


def import_behind(modules: Sequence[str]) -> None:
    """Import modules as `import_all` does, but let everything else that computes on this machine go first.

    A priority can't be raised again, and on Linux each thread has its own. So a thread imports, and this one waits for it.
    """

    def work() -> None:
        if sys.platform == "linux":
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, min(os.getpriority(os.PRIO_PROCESS, own) + LOW, LOWEST))
        import_all(modules)

    thread = threading.Thread(target=work, name="imports")
    thread.start()
    thread.join()
