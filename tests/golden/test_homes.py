"""Every command works on homes that version 0.1.0 wrote, and nothing in them is trained again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config import loader as config
from tests.golden.homes import NAMES, unpack
from workers.errors import UserInputError


def run(*words: str) -> str:
    """Run a command in this process and return what it printed on stdout."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, f"{words}: {result.output}\n{result.exception!r}"
    return result.stdout


def same_members(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether the members' states are those that the earlier version wrote; later versions write more of them."""
    return {n: {key: now["members"][n][key] for key in state} for n, state in before["members"].items()} == before["members"]


@pytest.mark.parametrize("name", NAMES)
def test_a_home_of_version_0_1_is_read_and_nothing_is_trained_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpack(name, tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    before = json.loads((folder / "home" / "sweeps" / name / "summary.json").read_text())

    state: dict[str, Any] = json.loads(run("status", name, "--home", "home", "--json"))
    assert state[name]["state"] == "done"
    assert all(text.split("/")[0] == text.split("/")[1].split()[0] for text in state[name]["members"].values())
    assert same_members(before, json.loads(run("report", name, "--home", "home", "--json")))
    assert before["recommended"] in run("report", name, "--home", "home")
    assert {job["state"] for job in json.loads(run("plan", "team.yaml", "--home", "home", "--json"))["jobs"]} == {"done"}
    details = json.loads(run("fuse", name, "--home", "home", "--json"))
    for candidate, row in before["fusions"].items():
        # Another kind of machine rounds otherwise, and L-BFGS stops at another point of a flat valley.
        assert details["candidates"][candidate]["test"]["nll"] == pytest.approx(row["test"]["nll"], abs=1e-3)
    run("export", name, "--method", before["recommended"], "--out", "again.onnx", "--home", "home")
    assert Path("again.onnx").is_file()

    again = json.loads(run("sweep", "team.yaml", "--home", "home", "--json").splitlines()[-1])
    assert (again["trained"], again["reused"]) == (0, before["trained"] + before["reused"])
    assert same_members(before, again)


@pytest.mark.parametrize("name", ["plain", "snapshots", "swa", "pack", "student"])
def test_a_home_of_version_0_1_is_fused_anew_without_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = unpack(name, tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    team = Path("team.yaml")
    team.write_text(team.read_text().replace("fusion: [vote", "fusion: [weighted, vote").replace("weighted, cascade", "cascade"))
    again = json.loads(run("sweep", "team.yaml", "--home", "home", "--json", "--inline").splitlines()[-1])
    assert again["trained"] == 0
    assert again["unsent"] == 0
    assert "weighted" in again["fusions"]
    assert os.path.getmtime(again["model"]) > os.path.getmtime(folder / "home" / "mlflow.db") - 3600


def test_a_home_with_a_removed_fusion_still_opens_and_its_team_file_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpack("resnet", tmp_path)
    monkeypatch.chdir(folder)
    assert json.loads(run("status", "tuned", "--home", "home", "--json"))["tuned"]["state"] == "done"
    assert "concat_tuned" in run("report", "tuned", "--home", "home")
    assert set(json.loads(run("fuse", "tuned", "--home", "home", "--json"))["candidates"]) == {"a", "b", "vote"}
    run("export", "tuned", "--method", "vote", "--out", "vote.onnx", "--home", "home")
    with pytest.raises(
        UserInputError, match=r"tuned.yaml:8: concat.finetune asks for concat_tuned. concat_tuned was removed"
    ) as refusal:
        config.load_team(Path("tuned.yaml"))
    assert "concat: unknown key" not in str(refusal.value)
    text = Path("tuned.yaml").read_text()
    Path("tuned.yaml").write_text(text.replace("concat: {finetune: true}\n", "").replace("[vote]", "[vote, concat_tuned]"))
    with pytest.raises(UserInputError, match=r"tuned.yaml:7: fusion: concat_tuned was removed"):
        config.load_team(Path("tuned.yaml"))
    Path("tuned.yaml").write_text(text.replace("concat: {finetune: true}\n", ""))
    assert json.loads(run("sweep", "tuned.yaml", "--home", "home", "--json", "--inline").splitlines()[-1])["trained"] == 0
