"""Concat on real features beside its optimum: `make table FEATURES=DIR`.

The features of benchmarks/table.yaml's members are too large to keep, and remain in the history. Concat searches within the
principal directions of its inputs, in single precision; the optimum is searched along all directions, in double precision, until
nothing is gained any more. The real features have 10 classes; the case of 100 classes is synthetic, as in benchmarks/fusion.py.

    for part in plain adamw color rows; do git show 531e00e^:benchmarks/results/table/$part.npz > DIR/$part.npz; done
    python -m benchmarks.concat DIR          # some minutes; results/concat.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.fusion import synthetic
from benchmarks.machine import write_result
from fusion.methods.concat import Concat
from fusion.metrics.calibration import nll
from fusion.predictions import Floats, FusionInputs, Predictions
from fusion.selection.fitting import fit_fusion

MEMBERS = ("plain", "adamw", "color")
ROWS = (5000, 1000, 360, 120)
LARGEST_DIFFERENCE = 2e-4  # nats
EXACT = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-12, "gtol": 1e-8}


def main() -> None:
    inputs, test = read(Path(sys.argv[1])), read_test(Path(sys.argv[1]))
    draw, worst = np.random.default_rng(0), 0.0
    cases: list[tuple[int, FusionInputs, Predictions]] = []
    results: list[dict[str, Any]] = []
    for count in ROWS:
        part = inputs.with_fuse(np.sort(draw.permutation(len(inputs.fuse.labels))[:count]))
        cases.append((10, part, test))
    many = synthetic(100, 2, 1000)
    cases.append((100, many.inputs, many.test))
    for classes, part, held_out in cases:
        concat = fitted(part, held_out)
        with exact():
            optimum = fitted(in_double_precision(part), held_out)
        results.append({"classes": classes, "rows": len(part.fuse.labels), "concat": concat, "optimum": optimum})
        worst = max(worst, *(abs(concat[key] - optimum[key]) for key in ("nested_nll", "test_nll")))
        print(json.dumps(results[-1]), flush=True)
    features = sum(x.shape[1] for x in inputs.fuse.features)
    write_result("concat", "make table FEATURES=DIR", {"features": features, "worst_difference": worst, "cases": results})
    print(f"{features:,} features: nested and test NLL within {worst:.1e} nats of the optimum's")
    if worst > LARGEST_DIFFERENCE:
        raise SystemExit(1)


def fitted(inputs: FusionInputs, test: Predictions) -> dict[str, Any]:
    """Concat's penalty, nested and test NLL. benchmarks/fusion.py measures its seconds."""
    fusion = fit_fusion("concat", Concat, inputs)
    assert isinstance(fusion.method, Concat)
    return {
        "penalty": fusion.method.penalty_,
        "nested_nll": nll(fusion.nested, inputs.fuse.labels),
        "test_nll": nll(fusion.predict_proba(test), test.labels),
    }


@contextmanager
def exact() -> Iterator[None]:
    """Search along all directions, until nothing is gained any more."""
    with patch("fusion.fitting.heads.MIN_DIRECTIONS", 10**6), patch("fusion.fitting.heads.LBFGS", EXACT):
        yield


def in_double_precision(inputs: FusionInputs) -> FusionInputs:
    features = tuple(x.astype(np.float64) for x in inputs.fuse.features)
    return replace(inputs, fuse=replace(inputs.fuse, features=features))


def read(folder: Path) -> FusionInputs:
    """The members' *fuse* outputs and heads."""
    kept = [np.load(folder / f"{name}.npz") for name in MEMBERS]
    heads = tuple((one["head_weight"].astype(np.float64), one["head_bias"].astype(np.float64)) for one in kept)
    return FusionInputs(_predictions(folder, "fuse"), None, np.zeros(0, np.int64), heads, alike=False)


def read_test(folder: Path) -> Predictions:
    """The members' *test* outputs."""
    return _predictions(folder, "test")


def _predictions(folder: Path, part: str) -> Predictions:
    kept, rows = [np.load(folder / f"{name}.npz") for name in MEMBERS], np.load(folder / "rows.npz")
    logits: Floats = np.stack([one[f"{part}_logits"].astype(np.float64) for one in kept])
    features = tuple(one[f"{part}_features"].astype(np.float32) for one in kept)
    return Predictions(logits, features, rows["labels"][rows[part]].astype(np.int64))


if __name__ == "__main__":
    main()
