"""Two programs that take turns on one machine, for what takes minutes: some machines change their speed twofold meanwhile.

Each program, with all processes that it starts, is stopped (SIGSTOP) while the other one runs. So both see the same machine. A
program's clocks go on while it is stopped: what it does every few seconds it does more often in the time that it has.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOOK_SECONDS = 1.0  # between two looks at what its processes have used
MARK = "CONCLAVE_BENCHMARK_SIDE"  # an environment variable that every process of a program inherits


@dataclass
class Side:
    """One of the programs.

    Attributes:
        commands: Its command lines. All begin at once.
        folder: Where their output goes, to files of their own.
        turn_seconds: How long each of its turns is.
        environment: What they have in their environment beside this process's.
        windows: When it ran, by `time.time()`.
        looks: What each kind of its processes had used of the processor until when.
    """

    commands: Sequence[Sequence[str]]
    folder: Path
    turn_seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    windows: list[tuple[float, float]] = field(default_factory=list)
    looks: list[tuple[float, Counter[str]]] = field(default_factory=list)

    def begin(self) -> None:
        """Start it; stopped, as soon as it is there."""
        self.mark, self.used = uuid.uuid4().hex, dict[psutil.Process, tuple[str, float]]()
        env = {**os.environ, **self.environment, MARK: self.mark}
        self.folder.mkdir(parents=True)
        self.started = []
        for number, command in enumerate(self.commands):
            with open(self.folder / f"{number}.out", "w") as out, open(self.folder / f"{number}.err", "w") as err:
                self.started.append(subprocess.Popen(command, env=env, stdout=out, stderr=err))
        self.signal(signal.SIGSTOP)

    def is_over(self) -> bool:
        """Return whether all of its commands have ended. Raises RuntimeError where one failed."""
        codes = [process.poll() for process in self.started]
        if any(codes):
            errors = "".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.err")))
            raise RuntimeError(f"a command ended with {codes}: {errors}")
        return None not in codes

    def run(self) -> None:
        """Let it run for a turn, or until its end, and stop it. What still tidies up after its end is left to do so."""
        began = time.time()
        self.signal(signal.SIGCONT)
        while time.time() - began < self.turn_seconds and not self.is_over():
            time.sleep(0.05)
            if time.time() - (self.looks[-1][0] if self.looks else 0.0) > LOOK_SECONDS:
                self._look(list(self.used))
        if not self.is_over():
            self.signal(signal.SIGSTOP)
        self.windows.append((began, time.time()))
        self._look(self._processes())

    def _look(self, processes: Iterable[psutil.Process]) -> None:
        """Note what processes have used of the processor. What one uses after the last look at it is not known."""
        for process in processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self.used[process] = _kind(process.cmdline()), times.user + times.system
        total = Counter[str]()
        for kind, seconds in self.used.values():
            total[kind] += seconds  # type: ignore[assignment]  # typeshed has them for whole numbers only
        self.looks.append((time.time(), total))

    def processor(self, began: float, ended: float) -> Counter[str]:
        """Return the processor seconds of each kind of process between two times, to a second or so."""

        def nearest(when: float) -> Counter[str]:
            return min(self.looks, key=lambda look: abs(look[0] - when))[1]

        return nearest(ended) - nearest(began)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes, those included that one of them starts meanwhile."""
        reached: set[psutil.Process] = set()
        while new := self._processes() - reached:
            reached |= new
            for process in new:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)

    def _processes(self) -> set[psutil.Process]:
        """Return all its processes. Ray's agents write their title over their environment, so children count too."""
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():  # parents first, for the most part
            with contextlib.suppress(psutil.Error):
                if process.ppid() in {parent.pid for parent in found} or process.environ().get(MARK) == self.mark:
                    found.add(process)
        return found

    def lines(self) -> list[str]:
        """Return what its commands have printed."""
        return [line for path in sorted(self.folder.glob("*.out")) for line in path.read_text().splitlines()]

    def seconds(self, began: float, ended: float) -> float:
        """Return how long it ran between two times of `time.time()`."""
        return sum(max(0.0, min(ended, end) - max(began, begin)) for begin, end in self.windows)


def _kind(command: Sequence[str]) -> str:
    """Return what kind of process this is, by its command line: the title of one of Ray's, a Python module, or a program."""
    words = [word for word in command if not word.startswith("-")]
    if words and "python" in Path(words[0]).name and len(words) > 1:
        words = words[1:]
    return Path(words[0]).name.split(".")[0] if words else "?"


def take_turns(sides: Sequence[Side]) -> None:
    """Run programs in turn until all have ended. What is left of them on an error or a signal is ended."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        for side in sides:
            side.begin()
        left = list(sides)
        while left:
            for side in left:
                side.run()
            left = [side for side in left if not side.is_over()]
    except BaseException:
        for side in sides:
            side.signal(signal.SIGKILL)
        raise
