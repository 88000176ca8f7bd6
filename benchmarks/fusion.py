"""Every fusion at a number of classes, each judged by nested cross-validation: seconds, and peak memory.

    python -m benchmarks.fusion 10 100 1000       # results/fusion-CLASSES.json

With 10 and 100 classes, 5 members have 45,000 out-of-fold and 5,000 *fuse* rows. With 1,000 classes, 3 members have 20,000 and
5,000.
The goals are 60, 120 and 300 seconds for all fusions with their comparison.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil

from benchmarks.machine import write_result
from fusion.interface import FUSIONS
from fusion.metrics.diversity import diversity
from fusion.predictions import Floats, FusionInputs, Predictions, TeamPredictions
from fusion.selection.compare import compare
from fusion.selection.costs import TrainingCost
from fusion.selection.fitting import fit_all

WIDTH, FOLDS = 512, 5
FUSE, TEST = 5_000, 5_000
GOALS = {10: 60, 100: 120, 1000: 300}
SAMPLE_SECONDS = 0.05


@dataclass
class Steps:
    """Seconds and peak memory of each step."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_gib: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began, process, over = time.perf_counter(), psutil.Process(), threading.Event()
        self.peak_gib[name] = 0.0

        def watch() -> None:
            while not over.wait(SAMPLE_SECONDS):
                self.peak_gib[name] = max(self.peak_gib[name], process.memory_info().rss / 2**30)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        yield
        over.set()
        thread.join()
        self.seconds[name] = time.perf_counter() - began
        print(f"{name}: {self.seconds[name]:.1f} s, {self.peak_gib[name]:.1f} GiB", flush=True)


def main(classes: int) -> None:
    members, fit = (3, 20_000) if classes >= 1000 else (5, 45_000)
    team, steps = synthetic(classes, members, fit), Steps()
    before = psutil.Process().memory_info().rss / 2**30
    fitted = fit_all(team, FUSIONS.own_names(), steps.step)
    paid = {name: TrainingCost(1.0, (1.0,) * FOLDS) for name in (*team.names, "student")}
    with steps.step("comparing"):
        compare(team, fitted, paid)
        diversity(team.names, team.inputs.fuse)
    total = sum(steps.seconds.values())
    result = {"classes": classes, "members": members, "seconds": steps.seconds, "peak_gib": steps.peak_gib, "before_gib": before}
    result |= {"total": total, "goal": GOALS.get(classes)}
    write_result(f"fusion-{classes}", f"python -m benchmarks.fusion {classes}", result)
    print(json.dumps({"classes": classes, "total": total, "goal": GOALS.get(classes)}), flush=True)


def synthetic(classes: int, members: int, fit: int) -> TeamPredictions:
    """Members that are right on about 85 % of the rows, alike in what they find hard."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, fit + FUSE + TEST)
    signal = 3.2 + 1.2 * np.log10(classes / 10)
    heads = [(draw.normal(size=(classes, WIDTH)) / WIDTH**0.5, np.zeros(classes)) for _ in range(members)]
    inverses = [np.linalg.pinv(weight).T.astype(np.float32) for weight, _ in heads]

    def logits(rows: slice, hard: Floats, spread: float = 1.0) -> Floats:
        z = draw.normal(size=(members, *hard.shape), scale=spread)
        z += hard
        z[:, np.arange(len(hard)), labels[rows]] += signal
        return z

    def predictions(rows: slice) -> Predictions:
        hard = draw.normal(size=(rows.stop - rows.start, classes))
        noise = draw.normal(size=(members, len(hard), WIDTH), scale=0.1).astype(np.float32)
        outputs_of = zip(logits(rows, hard), inverses, noise, strict=True)
        features = tuple((z @ inverse).astype(np.float32) + n for z, inverse, n in outputs_of)
        outputs = np.stack([x @ weight.T for x, (weight, _) in zip(features, heads, strict=True)]).astype(np.float64)
        folds = np.stack([logits(rows, hard) for _ in range(FOLDS)], axis=1)
        return Predictions(outputs, features, labels[rows], folds, outputs[0])

    parts = slice(0, fit), slice(fit, fit + FUSE), slice(fit + FUSE, fit + FUSE + TEST)
    out_of_fold = Predictions(logits(parts[0], draw.normal(size=(fit, classes))), (), labels[parts[0]])
    folds, every = np.arange(fit) % FOLDS, np.arange(len(labels))
    inputs = FusionInputs(predictions(parts[1]), out_of_fold, folds, tuple(heads), tuple(range(members)), alike=False)
    names = tuple(f"m{i}" for i in range(members))
    return TeamPredictions(
        names, tuple(map(str, range(classes))), inputs, predictions(parts[2]), *(every[part] for part in parts)
    )


if __name__ == "__main__":
    for word in sys.argv[1:] or ["10", "100", "1000"]:
        main(int(word))
