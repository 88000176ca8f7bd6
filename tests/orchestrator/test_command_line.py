"""What the command line says where the system refuses something, and what it never runs or writes."""

from __future__ import annotations

import csv
import inspect
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.export.fused_model import Combiner, FusedModel
from fusion.export.onnx_export import ModelCard, export_model, load_model
from fusion.export.onnx_session import torch_form
from fusion.methods.vote import Vote
from orchestrator.cli import label_commands, result_commands
from orchestrator.cli.options import write_csv
from tests.factories import TEAM
from tests.inputs import flat
from workers.config.own_code import import_from
from workers.config.specs import MemberSpec
from workers.models.build import build

VOTE = TEAM.replace("fusion: [vote, stack]", "fusion: [vote]").replace("folds: 2", "folds: 0")
OWN = """\
import pathlib
from torch import nn
pathlib.Path("imported").touch()

class Net(nn.Sequential):
    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))
"""


def conclave(folder: Path, *words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conclave", *words]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_an_address_of_the_environment_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(VOTE)
    said = conclave(tmp_path, "sweep", "team.yaml", "--home", "home", code=2, RAY_ADDRESS="127.0.0.1:9").stderr
    assert "conclave: RAY_ADDRESS 127.0.0.1:9: no Ray answers there" in said
    assert "--address" not in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("epochs: 2", "epochs: 1000000000000000000000000000000"), "less than or equal to 100000"),
        (("epochs: 2", "threads: 1000000000"), "less than or equal to 1024"),
        (("batch_size: 64", "batch_size: 1"), "greater than or equal to 2"),
        (("{name: a}", "{name: a, average: {kind: adam}}"), "unknown kind 'adam'. Known are ema, swa"),
    ],
)
def test_numbers_and_kinds_that_can_not_be_meant_are_refused(change: tuple[str, str], why: str, tmp_path: Path) -> None:
    assert change[0] in VOTE
    (tmp_path / "team.yaml").write_text(VOTE.replace(*change))
    assert why in conclave(tmp_path, "validate", "team.yaml", code=2).stderr


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported model of a network of somebody's own, whose module marks that it was imported."""
    (tmp_path / "somebodys.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    import_from((str(tmp_path),))
    spec = MemberSpec(name="m", seed=1, arch="somebodys:Net")
    fused = FusedModel([build(spec, 2, 8).eval()], Combiner(Vote, {"weights": torch.ones(1)}), 1.0).eval()
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    expected = fused(torch.from_numpy(images)).detach().double().numpy()
    export_model(fused, ModelCard([spec], ["=1+1", "y"], {}), tmp_path / "name.v1.2", images, expected)
    (tmp_path / "imported").unlink(missing_ok=True)
    flat(tmp_path / "photos", 3)
    return tmp_path / "name.v1.2"


def test_a_model_keeps_its_whole_name_and_runs_no_code_that_is_not_trusted(foreign: Path) -> None:
    folder = foreign.parent
    assert {path.name for path in folder.glob("name*")} == {"name.v1.2", "name.v1.2.json", "name.v1.2.safetensors"}
    assert torch_form(foreign) == (folder / "name.v1.2.json", folder / "name.v1.2.safetensors")
    conclave(folder, "predict", "name.v1.2", "photos", "--out", "a.csv")
    said = conclave(folder, "predict", "name.v1.2", "photos", "--runtime", "torch", code=2).stderr
    assert "names code of its own (somebodys:Net)" in said
    assert "conclave predict --runtime torch --trust-code name.v1.2" in said
    assert not (folder / "imported").exists()
    conclave(folder, "predict", "name.v1.2", "photos", "--runtime", "torch", "--trust-code", "--out", "b.csv")
    assert (folder / "imported").exists()
    assert load_model(foreign, (str(folder),))


def test_a_spreadsheet_computes_no_cell(foreign: Path) -> None:
    folder = foreign.parent
    conclave(folder, "predict", "name.v1.2", "photos", "--out", "plain.csv")
    conclave(folder, "predict", "name.v1.2", "photos", "--spreadsheet", "--out", "sheet.csv")
    plain, sheet = (list(csv.reader((folder / name).read_text().splitlines())) for name in ("plain.csv", "sheet.csv"))
    assert plain[1][1] == "=1+1"
    assert sheet[1][1] == "'=1+1"
    assert [row[2] for row in plain] == [row[2] for row in sheet]


def test_each_command_that_writes_a_table_can_write_it_for_a_spreadsheet() -> None:
    """And `write_csv` makes every command that comes decide."""
    for command in (result_commands.predict, label_commands.labels):
        assert inspect.signature(command).parameters["spreadsheet"].default is False
    file = io.StringIO()
    write_csv(file, [["a", "-b"], ["@c", "d,e"]], for_spreadsheet=True)
    assert file.getvalue() == "a,'-b\n'@c,\"d,e\"\n"


def test_prediction_sets_are_refused_of_a_model_that_flips(tmp_path: Path) -> None:
    said = conclave(tmp_path, "export", "digits", "--method", "vote", "--abstain", "--flips", "--home", "home", code=2).stderr
    assert "--abstain and --flips don't go together" in said
    assert not list(tmp_path.iterdir())
