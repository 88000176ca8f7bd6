"""Two programs that take turns: neither runs in the other's."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from benchmarks.turns import Side, take_turns
from workers.diagnostics.waiting import wait_until

# Tells the time now and then, in a process below the one that is started.
CLOCK = """
import subprocess, sys, time
if sys.argv[1:]:
    for _ in range(40):
        print(time.time(), flush=True)
        time.sleep(0.02)
else:
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""


def test_each_runs_in_its_own_turns_alone(tmp_path: Path) -> None:
    clock = tmp_path / "clock.py"
    clock.write_text(CLOCK)
    sides = [Side([[sys.executable, str(clock)]] * 2, tmp_path / name, 0.25) for name in "ab"]
    take_turns(sides)
    spans = sorted((*window, number) for number, side in enumerate(sides) for window in side.windows)
    assert all(end <= begin for (_, end, _), (begin, _, _) in itertools.pairwise(spans))
    for side in sides:
        said = [float(line) for line in side.lines()]
        assert len(said) == 80
        assert [when for when in said if not any(begin <= when <= end for begin, end in side.windows)] == []
        assert len(side.windows) > 2
        assert set(side.looks[-1][1]) == {"clock"}
        assert side.seconds(0, float("inf")) == pytest.approx(sum(end - begin for begin, end in side.windows))


def test_a_program_that_fails_ends_the_other_one(tmp_path: Path) -> None:
    failing = Side([[sys.executable, "-c", "raise SystemExit('no data')"]], tmp_path / "a", 0.5)
    waiting = Side([[sys.executable, "-c", "import time; time.sleep(600)"]], tmp_path / "b", 0.5)
    with pytest.raises(RuntimeError, match="no data"):
        take_turns([failing, waiting])
    assert waiting.started[0].wait(timeout=60) != 0


def test_what_tidies_up_after_a_program_is_not_left_stopped(tmp_path: Path) -> None:
    late = tmp_path / "late"
    tidying = f"import pathlib, time; time.sleep(1); pathlib.Path({str(late)!r}).touch()"
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {tidying!r}], start_new_session=True)"
    take_turns([Side([[sys.executable, "-c", program]], tmp_path / "a", 5.0)])
    assert wait_until(late.exists, 30)
