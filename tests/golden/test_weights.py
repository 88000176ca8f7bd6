"""Two tiny trainings give the weights that they gave before the packages were nested.

Weights repeat bit by bit on one kind of machine only, so the committed hashes are keyed by what decides about them; other
machines skip. `tests/golden/test_same_weights.py` compares two commits on whatever machine it runs on.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from orchestrator import sweep as pipeline
from orchestrator.execution.ray_backend import inline_executor
from orchestrator.home import Home

GOLDEN = Path(__file__).with_name("weights.json")
TEAM = """\
version: 1
name: golden
data: {dataset: digits, folds: 0}
train: {epochs: 2, batch_size: 64, schedule: one_cycle, precision: float32, threads: 1}
fusion: [vote]
members:
  - {name: sgd, width: 4, optimizer: {kind: sgd, lr: 0.05}, augment: [crop, {rotate: 15}, cutout]}
  - {name: adamw, width: 4, optimizer: adamw, augment: [crop, mixup], label_smoothing: 0.1, average: swa}
"""


def machine() -> str:
    """Name what decides about the last bits of a training: torch, the instruction sets and the number of threads."""
    sets = sorted(
        name for name, there in torch.cpu.get_capabilities().items() if there is True and name.startswith(("avx", "amx"))
    )
    return f"torch {torch.__version__.split('+')[0]}; {' '.join(sets) or torch.backends.cpu.get_cpu_capability()}; 1 thread"


def weights(folder: Path) -> dict[str, str]:
    (folder / "team.yaml").write_text(TEAM)
    summary = pipeline.run_sweep(folder / "team.yaml", pipeline.SweepOptions(Home(folder / "home"), inline_executor)).summary
    return {name: str(member.weights_sha256) for name, member in summary.members.items()}


def test_two_trainings_give_the_weights_that_they_always_gave(tmp_path: Path) -> None:
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if machine() not in known:
        pytest.skip(f"no weights are known of this kind of machine: {machine()}")
    assert weights(tmp_path) == known[machine()]


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as work:
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps({**known, machine(): weights(Path(work))}, indent=1) + "\n")
    print(f"{GOLDEN} is written", file=sys.stderr)
