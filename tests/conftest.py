"""Shared fixtures. Tests use their own Ray, homes and token path: nothing outside their temporary folder."""

import os
import signal
from pathlib import Path

import pytest

os.environ["RAY_AUTH_MODE"] = "token"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("CONCLAVE_HOME", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; what the tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEAM = """\
version: 1
name: tiny
data: {dataset: digits, folds: 2}
train: {epochs: 2, batch_size: 64, schedule: one_cycle}
defaults: {width: 4, optimizer: {kind: sgd, lr: 0.05}, augment: [crop]}
members:
  - {name: a}
  - {name: b, seed: 5}
"""


@pytest.fixture
def team_file(tmp_path: Path) -> Path:
    path = tmp_path / "team.yaml"
    path.write_text(TEAM)
    return path


def snapshot(folder: Path) -> dict[str, int]:
    """Every path below a folder with its size: what 'an untouched disk' means."""
    return {str(p.relative_to(folder)): p.lstat().st_size for p in sorted(folder.rglob("*"))}
