"""Ratios that hold on any machine, however busy, checked by CI with wide margins: `make guard`. Exit 1 where one got worse.

Both sides of a ratio are measured in turns in one run, and the median of the turns counts; figures for people are made by the
other files here, on quiet machines.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F

from benchmarks.sweep import IMPORTS, planned
from workers.config.specs import MemberSpec, TrainSpec
from workers.models.build import build
from workers.training.optimization import make_optimizer
from workers.training.steps import Stepper
from workers.training.task import TrainingData, TrainingTask

TURNS = 7
JOBS, BATCH, SIDE = 500, 64, 32
Work = Callable[[], object]


def ratio(work: Work, reference: Work, turns: int = TURNS) -> float:
    """Median of work over reference, a pair a turn."""
    work()
    reference()
    return median(_seconds(work) / _seconds(reference) for _ in range(turns))


def _seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def help_over_imports() -> float:
    """`conclave --help` over importing the libraries of its command line."""
    words = ([sys.executable, "-m", "conclave", "--help"], [sys.executable, "-c", IMPORTS])
    first, second = (lambda w=w: subprocess.run(w, capture_output=True, check=True) for w in words)
    return ratio(first, second, 5)


def plan_over_hashing() -> float:
    """A job's planning over writing and hashing a record of its size: grows where planning looks at everything for each job."""
    record = {f"key{i}": [i, str(i), {"of": i / 7}] for i in range(40)}

    def hashing() -> None:
        for _ in range(JOBS):
            hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    with tempfile.TemporaryDirectory() as work:
        return ratio(lambda: planned(JOBS // 5, 4, Path(work)), hashing)


def step_over_bare() -> float:
    """A step of the trainer, augmentation, checks and watching included, over forward, backward and step on one batch."""
    torch.set_num_threads(1)
    member = MemberSpec(name="m", seed=1, width=32, stem="imagenet")
    images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8)
    rows, labels = torch.arange(BATCH), torch.arange(BATCH) % 10
    network = build(member, 10, SIDE).train()
    task = TrainingTask(TrainingData(images, labels, rows, None), member, TrainSpec(), member.members, torch.device("cpu"))
    stepper = Stepper(network, task, BATCH)
    bare = build(member, 10, SIDE).to(memory_format=stepper.format).train()
    optimizer, x = make_optimizer(member, bare), torch.rand(BATCH, 3, SIDE, SIDE).contiguous(memory_format=stepper.format)

    def constant() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=stepper.precision == "bfloat16"):
            logits = bare(x)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return ratio(lambda: stepper.take(0, 0, rows), constant, 4 * TURNS)


# What is measured, and the most that it may be. Seen when it was written, on a busy machine: 0.95, 1.03, 1.09.
LIMITS: tuple[tuple[Callable[[], float], float], ...] = (
    (help_over_imports, 1.4),
    (plan_over_hashing, 3.0),
    (step_over_bare, 1.3),
)


def main() -> None:
    worse = 0
    for measure, limit in LIMITS:
        value = measure()
        worse += value > limit
        print(f"{measure.__name__:20} {value:6.2f}   at most {limit:g}{'' if value <= limit else '   WORSE'}", flush=True)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
