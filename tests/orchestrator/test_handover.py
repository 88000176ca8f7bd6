"""What the driver hands over to the fusion actor, and what that imports early."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.fusing.request import ArtifactLocation
from workers.storage.artifacts import MemberArtifact

ROOT = Path(__file__).parents[2]
FEW = 150  # modules that may still be imported on the way: about 1,200 would be, if nothing was imported early

CODE = """
import importlib, sys
from pathlib import Path
from orchestrator import sweep
from orchestrator.fusing import handover
from tests.factories import sweep_inline
assert "orchestrator.fusing.step" not in sys.modules, "the driver imports what the fusion step needs"
for name in handover.MODULES:
    importlib.import_module(name)

def fuse(request):
    before = set(sys.modules)
    details = handover.fuse(request)
    print("NEW", len(set(sys.modules) - before))
    return details

sweep.fuse = fuse
sweep_inline(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_mlflow_is_not_imported_for_what_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "workers.tracking.client", None)  # whoever imports it fails
    monkeypatch.setattr(MemberArtifact, "done", True)
    assert ArtifactLocation("run", tmp_path).download("sqlite:///store.db") == tmp_path


@pytest.mark.slow
def test_the_driver_imports_nothing_of_the_fusion_step_and_its_actor_nearly_all_of_it_early(
    team_file: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", CODE, str(team_file), str(tmp_path / "home")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    [new] = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("NEW")]
    assert new < FEW
