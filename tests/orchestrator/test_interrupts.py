"""An interrupt ends a command even where it comes within a function out of which nothing can be raised."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """\
import gc, os, signal, time, weakref
from workers.diagnostics import interrupts

interrupts.listen()

class Thing:
    pass

def interrupt(*_):
    os.kill(os.getpid(), signal.{signal})
    time.sleep(0.01)

{lose}
time.sleep(30)
print("went on")
"""
LOSE = {
    "finalizer": "Thing.__del__ = interrupt\nThing()",
    "weak reference": "thing = Thing()\nreference = weakref.ref(thing, interrupt)\ndel thing",
    "garbage collection": "gc.callbacks.append(interrupt)\ngc.collect()",
}


def _run(lose: str, signal: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(signal=signal, lose=lose)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("lose", LOSE.values(), ids=LOSE)
def test_an_interrupt_that_could_not_be_raised_is_raised_again(lose: str, signal: str) -> None:
    done = _run(lose, signal)
    assert "went on" not in done.stdout
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert "ignored" not in done.stderr


def test_any_other_exception_of_a_finalizer_is_reported_as_always() -> None:
    done = _run("def fail(_): raise ValueError('no')\nThing.__del__ = fail\nThing()\nraise SystemExit", "SIGINT")
    assert "Exception ignored in" in done.stderr
    assert "ValueError: no" in done.stderr
    assert done.returncode == 0
