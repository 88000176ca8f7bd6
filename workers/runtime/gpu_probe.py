"""Find out how many trainings one GPU takes at once: a few steps of one, then of two at once, and so on while it pays.

Each training is a process of its own, as it is in a sweep. `python -m workers.runtime.gpu_probe` is one of them: it reads a job,
and takes steps each time that it is told to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, TYPE_CHECKING, NamedTuple, Self, cast

import psutil

from workers.config.job import Job

if TYPE_CHECKING:
    import torch

STEPS = 20  # of each training in each round
WARM_UP = 8  # steps before: the first ones choose kernels and become a graph
WORTH = 1.1  # times the images a second that one training more has to bring
MOST_MEMORY = 0.9  # of the device, that all of them may take
SECONDS = 240.0  # after which all is ended, and what was seen until then counts
ANSWER = "probe: "  # before each line of an answer: libraries print, too


class Round(NamedTuple):
    """What was seen of some trainings at once.

    Attributes:
        trainings: Their number.
        images_per_second: Of all together.
        memory: Share of the device's memory that was in use.
    """

    trainings: int
    images_per_second: float
    memory: float


@dataclass(frozen=True)
class Sharing:
    """How many trainings share a GPU, and why.

    Attributes:
        trainings: Their number.
        reason: Why it is so many and no more, in words.
    """

    trainings: int
    reason: str

    @property
    def sentence(self) -> str:
        """What was decided, and why."""
        what = f"{self.trainings} trainings share a GPU" if self.trainings > 1 else "each training has a GPU for itself"
        return f"{what} ({self.reason})"


def choose(rounds: Sequence[Round], most: int) -> Sharing:
    """Return how many trainings share a GPU.

    Args:
        rounds: What came of one training, of two at once, and so on. It is empty where not even one could run.
        most: The number of trainings that was not to be exceeded.
    """
    if not rounds:
        return Sharing(1, "not even one training could be tried")
    seen = ", ".join(f"{found.trainings}: {found.images_per_second:,.0f}" for found in rounds)
    seen = f"images a second by the number of trainings: {seen}"
    for before, after in pairwise(rounds):
        if after.memory > MOST_MEMORY:
            return Sharing(before.trainings, f"{seen}; {after.trainings} would take {after.memory:.0%} of the memory")
        if after.images_per_second < WORTH * before.images_per_second:
            return Sharing(before.trainings, f"{seen}; {after.trainings} at once gave less than {WORTH - 1:.0%} more")
    last = rounds[-1].trainings
    return Sharing(last, seen if last >= most else f"{seen}; {last + 1} at once did not run: the memory may be too small")


def probe_gpu(job: Job, most: int) -> Sharing:
    """Find out how many trainings like a job share a GPU. Nothing is written.

    Args:
        job: The job, with data that is on this machine.
        most: Largest number of trainings to try.
    """
    rounds: list[Round] = []
    trainings: list[_Training] = []
    with ExitStack() as stack:
        end = threading.Timer(SECONDS, _end, [trainings])
        end.daemon = True
        end.start()
        stack.callback(end.cancel)
        while len(trainings) < most and _pays(rounds):
            trainings.append(stack.enter_context(_Training(job)))
            found = _round(trainings)
            if found is None:
                break
            rounds.append(found)
    return choose(rounds, most)


def _end(trainings: Sequence[_Training]) -> None:
    for training in trainings:
        training.process.kill()


def _pays(rounds: Sequence[Round]) -> bool:
    """Return whether one training more may pay, by what the last one brought."""
    return not rounds or choose(rounds, most=0).trainings == len(rounds)


def _round(trainings: Sequence[_Training]) -> Round | None:
    """Let all trainings take steps at once; return what was seen, or None where one of them ended."""
    try:
        trainings[-1].answer()  # that it is ready: all others wait meanwhile
        for training in trainings:
            training.begin()
        answers = [training.answer() for training in trainings]
    except (OSError, EOFError):
        return None
    return Round(len(trainings), sum(a["rate"] for a in answers), max(a["memory"] for a in answers))


class _Training:
    """A process that trains a few steps each time that it is told to. It ends with the `with` block."""

    def __init__(self, job: Job) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.runtime.gpu_probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self.told, self.heard = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        self._tell(job.model_dump_json())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def begin(self) -> None:
        """Tell it to take the steps of a round."""
        self._tell("go")

    def answer(self) -> dict[str, float]:
        """Wait for its next answer. Raises EOFError where it ended."""
        for line in self.heard:
            if line.startswith(ANSWER):
                return cast(dict[str, float], json.loads(line.removeprefix(ANSWER)))
        raise EOFError("the training ended")

    def _tell(self, line: str) -> None:
        self.told.write(line + "\n")
        self.told.flush()


def main() -> None:
    """Be one of the trainings: read a job from a line, then take steps for each further line."""
    import torch

    from workers.runtime.training_job import default_device, stepping

    device = default_device()
    take, images = stepping(Job.model_validate_json(sys.stdin.readline()), device)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for step in range(count):
            take(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return count * images / (time.perf_counter() - began)

    steps(WARM_UP)
    _answer({})
    while sys.stdin.readline():
        _answer({"rate": steps(STEPS), "memory": _memory_in_use(device)})


def _answer(values: dict[str, float]) -> None:
    print(ANSWER + json.dumps(values), flush=True)


def _memory_in_use(device: torch.device) -> float:
    """Return the share of a device's memory that is in use, by whomever."""
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return 1 - free / total
    return psutil.virtual_memory().percent / 100


if __name__ == "__main__":
    main()
