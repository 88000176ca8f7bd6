"""The signatures of a dozen teams stay what they were: otherwise finished trainings would be trained again.

`signatures.json` was written by the commit before the packages were nested. Only a deliberate change of what a training
computes may change it; then run `python -m tests.golden.test_signatures`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config import loader as config
from orchestrator.planning.plan import Planner
from tests.factories import FakeStore
from workers.data.store import Store

GOLDEN = Path(__file__).with_name("signatures.json")
NETWORK = """\
from torch import nn


def net(num_classes: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))
"""
HEAD = "version: 1\nname: golden\nmembers: [{name: a}, {name: b, seed: 5}]\n"
TEAMS = {
    "defaults": HEAD,
    "folds and seeds": HEAD + "seed: 7\ndata: {dataset: digits, folds: 3, fuse_fraction: 0.2, test_fraction: 0.3}\n",
    "recipe": HEAD
    + "train: {epochs: 9, batch_size: 32, accumulate: 2, schedule: {kind: step, every: 4}, precision: float32, clip: 1.5,"
    " ema: 0.99, stop: {patience: 3}, fold_epochs: 0.5}\n"
    "defaults: {arch: resnet34, width: 16, stem: cifar, optimizer: {kind: adamw, lr: 0.002}, label_smoothing: 0.1,"
    " augment: [flip, {crop: 2}, {rotate: 10}, cutout, {color: 0.3}, erase, {mixup: 0.4}]}\n",
    "one cycle": HEAD + "train: {schedule: {kind: one_cycle, warmup: 0.2}}\n",
    "processes": HEAD + "resources: {workers: 2, cpus: 4}\ndefaults: {resources: {gpus: 2}}\n",
    "snapshots": "version: 1\nname: golden\nmembers: [{name: cyclic, snapshots: 3}]\n",
    "cycles": "version: 1\nname: golden\nmembers: [{name: cyclic, snapshots: 3, cycles: {first: 0.6, rate: 0.5}}]\n",
    "averages": "version: 1\nname: golden\nmembers: [{name: a, average: swa}, {name: b, average: {kind: ema, decay: 0.9}}]\n",
    "student": HEAD + "fusion: [vote, student]\nstudent: {epochs: 3, temperature: 2, soft: 0.5, start: a}\n",
    "own network": "version: 1\nname: golden\ndata: {folds: 2}\nmembers: [{name: own, arch: 'own:net'}]\n",
    "weights": "version: 1\nname: golden\nmembers: [{name: a, weights: start.pt}, {name: b, arch: mobilenet_v3_small}]\n",
    "search": "version: 1\nname: golden\nmembers: [{name: a, search: {trials: 4, keep: 2, lr: [0.01, 0.1], grace: 2}}]\n",
}


def _store(folder: Path, with_test_rows: bool) -> Store:
    return type("Rows", (FakeStore,), {"tested": np.arange(100) < 20 * with_test_rows})(folder)


def signatures(folder: Path) -> dict[str, dict[str, str]]:
    (folder / "own.py").write_text(NETWORK)
    (folder / "start.pt").write_bytes(b"these bytes stand for weights to start from")
    computed: dict[str, dict[str, str]] = {}
    for with_test_rows in (False, True):
        store = _store(folder / f"store-{with_test_rows}", with_test_rows)
        for name, text in TEAMS.items():
            (folder / "team.yaml").write_text(text)
            team = config.load_team(folder / "team.yaml")
            members = Planner(team, store, folder / "home", (str(folder),)).plan().members
            rows = "own test rows" if with_test_rows else "one tree"
            computed[f"{name}, {rows}"] = {planned.label: planned.signature for planned in members}
    return computed


@pytest.mark.parametrize("name", [f"{team}, {rows}" for team in TEAMS for rows in ("one tree", "own test rows")])
def test_the_signatures_of_a_team_stay_the_same(name: str, tmp_path: Path) -> None:
    assert signatures(tmp_path)[name] == json.loads(GOLDEN.read_text())[name]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        GOLDEN.write_text(json.dumps(signatures(Path(work)), indent=1) + "\n")
    print(f"{GOLDEN} is written", file=sys.stderr)
