"""All fusions of ten members: 45,000 out-of-fold rows and 5,000 fuse rows of ten classes, each judged by nested cross-validation.

python -m benchmarks.fusion        # seconds, and the most memory; results/fusion.json
"""

from __future__ import annotations

import json
import resource
import time

import numpy as np

from benchmarks.machine import write_result
from fusion.interface import FUSIONS
from fusion.metrics.diversity import diversity
from fusion.predictions import Floats, FusionInputs, Predictions, TeamPredictions
from fusion.selection.compare import compare
from fusion.selection.costs import TrainingCost
from fusion.selection.fitting import fit_all
from orchestrator.fusing.progress import Steps

MEMBERS, CLASSES, WIDTH, FOLDS = 10, 10, 512, 5
FIT, FUSE, TEST = 45_000, 5_000, 10_000


def main() -> None:
    began = time.perf_counter()
    gathered = synthetic()
    seconds_to_make = time.perf_counter() - began
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    steps = Steps()
    began = time.perf_counter()
    fitted = fit_all(gathered, FUSIONS.own_names(), lambda name: steps.step(f"fitting {name}"))
    seconds = {"fitting all": time.perf_counter() - began}
    began = time.perf_counter()
    paid = {name: TrainingCost(1.0, (1.0,) * FOLDS) for name in (*gathered.names, "student")}
    compare(gathered, fitted, paid)
    diversity(gathered.names, gathered.inputs.fuse)
    seconds["comparing"] = time.perf_counter() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {
        "seconds": seconds,
        "by_step": steps.seconds,
        "total": sum(seconds.values()),
        "peak_gib": most,
        "before_gib": before,
        "making": seconds_to_make,
    }
    write_result("fusion", "python -m benchmarks.fusion", result)
    print(json.dumps(result, indent=1))


def synthetic() -> TeamPredictions:
    """Members that are right in about 85 % of the rows, alike in what they find hard."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, FIT + FUSE + TEST)
    hard = draw.normal(size=(len(labels), CLASSES))
    heads = [(draw.normal(size=(CLASSES, WIDTH)) / WIDTH**0.5, np.zeros(CLASSES)) for _ in range(MEMBERS)]

    def logits(rows: slice) -> Floats:
        n = rows.stop - rows.start
        noise = draw.normal(size=(MEMBERS, n, CLASSES))
        return np.asarray(3.2 * np.eye(CLASSES)[labels[rows]] + hard[rows] + noise)

    fit, fuse, test = slice(0, FIT), slice(FIT, FIT + FUSE), slice(FIT + FUSE, FIT + FUSE + TEST)

    def table(rows: slice) -> Predictions:
        z = logits(rows)
        features = tuple(
            (z[m] @ np.linalg.pinv(heads[m][0]).T + 0.1 * draw.normal(size=(z.shape[1], WIDTH))).astype(np.float32)
            for m in range(MEMBERS)
        )
        folds = np.stack([logits(rows) for _ in range(FOLDS)], axis=1)
        return Predictions(z, features, labels[rows], folds, z[0])

    folds = np.arange(FIT) % FOLDS
    inputs = FusionInputs(
        table(fuse), Predictions(logits(fit), (), labels[fit]), folds, tuple(heads), tuple(range(MEMBERS)), alike=False
    )
    names = tuple(f"m{i}" for i in range(MEMBERS))
    every = np.arange(len(labels))
    return TeamPredictions(names, tuple(map(str, range(CLASSES))), inputs, table(test), every[fit], every[fuse], every[test])


if __name__ == "__main__":
    main()
