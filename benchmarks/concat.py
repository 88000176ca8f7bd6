"""Check concat on real features: is each penalty solved to its optimum, in how many steps? `make table FEATURES=DIR`.

The features of benchmarks/table.yaml's members are too large to keep, and remain in the history. Beside each joint solution of
all folds stands that of each fold alone in float64, to the last digit.

    for part in plain adamw color rows; do git show 531e00e^:benchmarks/results/table/$part.npz > DIR/$part.npz; done
    python -m benchmarks.concat DIR          # a few minutes; results/concat.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import scipy.optimize

from benchmarks.machine import write_result
from fusion.fitting.cross_validation import PENALTIES, SeparateFolds, shuffled_splits
from fusion.fitting.descent import Objective
from fusion.fitting.joint_folds import JointFolds
from fusion.fitting.shrinkage import ShrinkageProblem
from fusion.methods.concat import Concat, averaging_head
from fusion.predictions import Floats, FusionInputs, Labels, Predictions
from fusion.selection.fitting import fit_fusion

MEMBERS = ("plain", "adamw", "color")
EXACT = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-8}


class CountedFolds(JointFolds):
    """Folds that count how often their objective is evaluated."""

    evaluations = 0

    def _objective_of(self, some: Labels, penalty: float) -> Objective:
        objective = super()._objective_of(some, penalty)

        def counted(deltas: Floats) -> tuple[float, Floats]:
            self.evaluations += 1
            return objective(deltas)

        return counted


def main() -> None:
    inputs = read(Path(sys.argv[1]))
    x, y = np.concatenate(inputs.fuse.features, axis=1), inputs.fuse.labels
    start, splits = averaging_head(inputs), shuffled_splits(len(y))
    joint, seconds = CountedFolds(x, y, [start] * len(splits), splits), 0.0
    exact = SeparateFolds(ShrinkageProblem, x.astype(np.float64), y, start, splits)
    rows = []
    for penalty in PENALTIES[1:]:
        before, began = joint.evaluations, time.perf_counter()
        joint.solve(penalty)
        took = time.perf_counter() - began
        with to_the_last_digit():
            exact.solve(penalty)
        losses, reference = joint.losses(), exact.losses()
        seconds += took
        row = {"penalty": penalty, "evaluations": joint.evaluations - before, "seconds": took, "nll": float(losses.mean())}
        rows.append({**row, "off_in_nats": abs(float(losses.mean() - reference.mean()))})
        print(json.dumps(rows[-1]), flush=True)
    began = time.perf_counter()
    fit_fusion("concat", Concat, inputs)
    nested = time.perf_counter() - began
    result = {"rows": len(y), "features": x.shape[1], "folds": len(splits), "seconds": seconds, "penalties": rows}
    write_result("concat", "make table FEATURES=DIR", {**result, "seconds_with_nested_folds": nested})
    worst = max(row["off_in_nats"] for row in rows)
    print(f"{len(y):,} rows of {x.shape[1]:,} features: held-out NLL within {worst:.1e} nats of the optimum's")
    print(f"fitted with nested cross-validation in {nested:.0f} s")
    if worst > 1e-6:
        raise SystemExit(1)


@contextmanager
def to_the_last_digit() -> Iterator[None]:
    """Let each minimisation go on as long as it gains anything."""
    minimize = scipy.optimize.minimize
    with patch("scipy.optimize.minimize", lambda *given, **keys: minimize(*given, **{**keys, "options": EXACT})):
        yield


def read(folder: Path) -> FusionInputs:
    """The members' *fuse* outputs and heads."""
    kept, rows = [np.load(folder / f"{name}.npz") for name in MEMBERS], np.load(folder / "rows.npz")
    labels = rows["labels"][rows["fuse"]].astype(np.int64)
    logits: Floats = np.stack([one["fuse_logits"].astype(np.float64) for one in kept])
    features = tuple(one["fuse_features"].astype(np.float32) for one in kept)
    heads = tuple((one["head_weight"].astype(np.float64), one["head_bias"].astype(np.float64)) for one in kept)
    return FusionInputs(Predictions(logits, features, labels), None, np.zeros(0, np.int64), heads, alike=False)


def read_test(folder: Path) -> Predictions:
    """The members' *test* outputs."""
    kept, rows = [np.load(folder / f"{name}.npz") for name in MEMBERS], np.load(folder / "rows.npz")
    logits: Floats = np.stack([one["test_logits"].astype(np.float64) for one in kept])
    features = tuple(one["test_features"].astype(np.float32) for one in kept)
    return Predictions(logits, features, rows["labels"][rows["test"]].astype(np.int64))


if __name__ == "__main__":
    main()
