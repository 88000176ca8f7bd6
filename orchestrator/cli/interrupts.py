"""Interrupts that end a command wherever in the program they come.

Python raises KeyboardInterrupt in whatever function runs when the signal comes. Out of a finalizer, or out of the callback of a
weak reference (every import has one), nothing can be raised: Python reports the exception and goes on, and so would a sweep.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

REPEAT_SECONDS = 0.1


def listen() -> None:
    """Make SIGTERM and SIGHUP interrupts, as Ctrl-C makes one, and raise an interrupt again that was lost."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _repeat_interrupt


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _repeat_interrupt(lost: Any) -> None:
    """Take an exception that could not be raised. Where it is an interrupt, raise it a moment later, in another function."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, REPEAT_SECONDS)
    else:
        sys.__unraisablehook__(lost)
