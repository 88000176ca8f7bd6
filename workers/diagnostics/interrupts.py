"""Make an interrupt end a command at any point of the program.

Python raises KeyboardInterrupt in the function that runs when the signal arrives. A finalizer or a weak-reference callback (every
import has one) cannot raise: Python reports the exception and continues, and so would a sweep.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

REPEAT_SECONDS = 0.1
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


def listen() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt like Ctrl-C, and repeat an interrupt that Python dropped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _repeat_interrupt


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore interrupts for a moment, in which a command brings what it began into order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _repeat_interrupt(lost: Any) -> None:
    """Handle an unraisable exception: repeat an interrupt a moment later, in another function."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, REPEAT_SECONDS)
    else:
        sys.__unraisablehook__(lost)
