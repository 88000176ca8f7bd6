"""The formats that finished homes and scripts rely on: keys of manifests, checkpoints and summaries, names inside a model.

`formats.json` was written by the commit before the packages were nested. Keys may be added on purpose, by
`python -m tests.golden.test_formats`; none may disappear.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from safetensors import safe_open

from orchestrator import sweep as pipeline
from orchestrator.execution.ray_backend import inline_executor
from orchestrator.fusing import refit
from orchestrator.fusing.exporting import write_model
from orchestrator.fusing.fitted_team import fit_team
from orchestrator.home import Home
from workers.storage.training_record import TrainingRecord

GOLDEN = Path(__file__).with_name("formats.json")
TEAM = """\
version: 1
name: golden
data: {dataset: digits, folds: 2}
train: {epochs: 2, batch_size: 64, ema: 0.9}
defaults: {arch: "own:Net", optimizer: {kind: sgd, lr: 0.05}, augment: [crop]}
fusion: [student, cascade, vote, vote_logits, weighted, stack, concat, stack_bag]
prices: {spot: 0.2}
members:
  - {name: a}
  - {name: b, seed: 5}
"""
NETWORK = """\
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * image_size**2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))
"""
MODELS = ("a", "cascade", "vote", "vote_logits", "stack", "concat", "stack_bag")


def keys(value: Any) -> Any:
    """Return the keys of nested dictionaries; a list is represented by its first entry."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return type(value).__name__ if not isinstance(value, int | float) else "number"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def _tensors(path: Path) -> list[str]:
    with safe_open(path, "np") as file:
        return sorted(file.keys())


def _model(path: Path) -> dict[str, Any]:
    model = onnx.load(str(path))
    graph = model.graph
    return {
        "inputs": [tensor.name for tensor in graph.input],
        "outputs": [tensor.name for tensor in graph.output],
        "metadata": sorted(entry.key for entry in model.metadata_props),
        "json": keys(json.loads(path.with_suffix(".json").read_text())),
        "combiner": json.loads(path.with_suffix(".json").read_text())["combiner"],
        "tensors": _tensors(path.with_suffix(".safetensors")),
    }


def formats(folder: Path) -> dict[str, Any]:
    (folder / "own.py").write_text(NETWORK)
    (folder / "team.yaml").write_text(TEAM)
    home = Home(folder / "home")
    os.environ["CONCLAVE_FAULT"] = "fit.step@b:40:nan"  # b leaves its checkpoint behind
    pipeline.run_sweep(folder / "team.yaml", pipeline.SweepOptions(home, inline_executor))
    checkpoint = next((folder / "home" / "jobs").glob("*/checkpoint/[0-9]*/manifest.json"))
    found: dict[str, Any] = {
        "checkpoint": keys(json.loads(checkpoint.read_text())),
        "checkpoint files": sorted(path.name for path in checkpoint.parent.iterdir()),
        "checkpoint tensors": {f.name: _tensors(f) for f in sorted(checkpoint.parent.glob("*.safetensors"))},
    }
    del os.environ["CONCLAVE_FAULT"]
    # As measured, the first training may take longer than all fold trainings, and stack_bag has no compute-matched vote then.
    with patch.object(TrainingRecord, "total_seconds", property(lambda record: 1.0)):
        pipeline.run_sweep(folder / "team.yaml", pipeline.SweepOptions(home, inline_executor))
    sweep = home.sweep("golden")
    jobs = [json.loads(path.read_text()) for path in sorted((folder / "home" / "jobs").glob("*/fit/manifest.json"))]
    full = next(record for record in jobs if record["fold"] is None and record["member"]["name"] == "a")
    store = next(path for path in (folder / "home" / "data").iterdir() if path.is_dir())
    found |= {
        "manifest": keys(full),
        "artifact tensors": _tensors(folder / "home" / "jobs" / full["signature"] / "fit" / "outputs.safetensors"),
        "summary": keys(read_json(sweep.path / "summary.json")),
        "sweep.json": {**keys(read_json(sweep.path / "sweep.json")), "runs": "by signature"},
        "fusion.json": keys(read_json(sweep.path / "fusion.json")),
        "outputs.npz": sorted(np.load(sweep.outputs, allow_pickle=False).files),
        "store.json": keys(json.loads((store / "store.json").read_text())),
        "store files": sorted(path.name for path in store.iterdir()),
        "home": sorted(path.name for path in (folder / "home").iterdir()),
        "sweep files": sorted(path.name for path in sweep.path.iterdir()),
    }
    request = refit.build_request(home.path, "golden")
    made = fit_team(request)
    for name in MODELS:
        write_model(request, made, name, folder / f"{name}.onnx")
        found[f"model {name}"] = _model(folder / f"{name}.onnx")
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def missing(expected: Any, actual: Any, where: str = "") -> list[str]:
    """Return the places of `expected` that `actual` lacks, or holds with another value."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return [text for key, item in expected.items() for text in missing(item, actual.get(key), f"{where}/{key}")]
    return [] if expected == actual else [f"{where}: {expected} became {actual}"]


def test_formats_stay_what_finished_homes_and_scripts_rely_on(tmp_path: Path) -> None:
    assert missing(json.loads(GOLDEN.read_text()), formats(tmp_path)) == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        GOLDEN.write_text(json.dumps(formats(Path(work)), indent=1) + "\n")
    print(f"{GOLDEN} is written", file=sys.stderr)
