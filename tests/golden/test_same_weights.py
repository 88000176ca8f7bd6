"""The base commit and this one train the same weights on the same machine, by the command that people use.

`python -m tests.golden.test_same_weights COMMIT TEAM.YAML [...]` compares any two states on any team files.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = "a39d5d8"  # the last commit before heads, packs and shared GPUs were taken out
TEAM = """\
version: 1
name: golden
data: {dataset: digits, folds: 2}
train: {epochs: 2, batch_size: 64, schedule: one_cycle}
defaults: {width: 4, augment: [crop, {rotate: 15}]}
fusion: [vote, stack]
members:
  - {name: plain, optimizer: {kind: sgd, lr: 0.05}}
  - {name: cyclic, optimizer: adamw, snapshots: 2}
"""


def _has(commit: str) -> bool:
    words = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode == 0


def _checkout(commit: str, folder: Path) -> Path:
    archive = subprocess.run(
        ["git", "archive", commit, "orchestrator", "fusion", "workers"], cwd=ROOT, capture_output=True, check=True
    )
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def _weights(code: Path, team_file: Path, folder: Path, **more: str) -> dict[str, str]:
    """Sweep with the code in `code`; return the digest of the weights of each member, and of each fold training."""
    script = "import sys; from orchestrator.cli import main; main()"
    words = [sys.executable, "-c", script, "sweep", str(team_file), "--home", str(folder / "home"), "--inline", "--json"]
    env = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", **more}
    subprocess.run(words, cwd=folder, env=env, capture_output=True, check=True)
    records = [json.loads(path.read_text()) for path in (folder / "home" / "jobs").glob("*/fit/manifest.json")]
    return {f"{record['member']['name']} {record['fold']}": record["weights_sha256"] for record in records}


def compare(commit: str, team_file: Path, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the weights' digests by the code of a commit, and by the code of this checkout."""
    then, now = folder / "then", folder / "now"
    then.mkdir()
    now.mkdir()
    return _weights(_checkout(commit, folder / "code"), team_file, then), _weights(ROOT, team_file, now)


@pytest.mark.slow
@pytest.mark.skipif(not _has(BASE), reason="a shallow clone has no base commit to compare with")
def test_the_base_commit_and_this_one_train_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(TEAM)
    then, now = compare(BASE, tmp_path / "team.yaml", tmp_path)
    assert len(now) == 9
    assert now == then


if __name__ == "__main__":
    for name in sys.argv[2:]:
        with tempfile.TemporaryDirectory() as work:
            then, now = compare(sys.argv[1], Path(name).resolve(), Path(work))
        print(f"{name}: {sum(then[key] == now.get(key) for key in then)} of {len(then)} trainings have the same weights")
