"""Images come and go between sweeps: what they do not change is not trained again, and fusions are judged on the new parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from orchestrator.cli import data_commands
from orchestrator.home import Home
from orchestrator.results import SweepSummary
from tests.factories import sweep_inline
from tests.inputs import NETWORK, classes, picture
from workers.data.split_history import COLUMNS
from workers.errors import UserInputError

TEAM = """\
version: 2
name: tiny
data: {dataset: folder, root: images, image_size: 16, folds: 2, test_fraction: 0.25, fuse_fraction: 0.25}
train: {epochs: 2, batch_size: 16}
defaults: {arch: "small:Small", augment: [], optimizer: {kind: sgd, lr: 0.05}}
fusion: [vote, stack]
members: [{name: a}, {name: b, seed: 5}]
"""


class Team:
    """A team in a folder, whose images change."""

    def __init__(self, folder: Path, text: str = TEAM) -> None:
        self.folder = folder
        (folder / "small.py").write_text(NETWORK)
        classes(folder / "images", {"cat": 40, "dog": 40, "eel": 40})
        self.write(text)

    def write(self, text: str) -> None:
        (self.folder / "team.yaml").write_text(text)

    def sweep(self) -> SweepSummary:
        return sweep_inline(self.folder / "team.yaml", self.folder / "home").summary

    def parts(self, out: str = "split.csv") -> dict[str, str]:
        """The part and fold of each image."""
        path = self.folder / out
        data_commands.split(self.folder / "team.yaml", path, self.folder / "home")
        lines = [line.split(",") for line in path.read_text().splitlines()]
        assert tuple(lines[0]) == COLUMNS
        return {name: f"{part} {fold}".strip() for name, _, part, fold in lines[1:]}

    def image_in(self, part: str) -> Path:
        return self.folder / "images" / next(name for name, found in self.parts().items() if found.startswith(part))


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(tmp_path)


def add(folder: Path, number: int, hue: int = 0) -> None:
    picture(hue, 1000 + number).save(folder / f"new-{number:03d}.png")


def moved(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in before if name in after and before[name] != after[name]]


def outputs(team: Team) -> Any:
    return np.load(Home(team.folder / "home").sweep("tiny").outputs)


@pytest.mark.slow
def test_images_that_no_member_trains_on_train_nothing_again(team: Team) -> None:
    first = team.sweep()
    before = team.parts()
    assert first.trained == 6
    team.image_in("test").unlink()
    team.image_in("fuse").unlink()
    again = team.sweep()
    assert (again.state, again.trained, again.reused) == ("done", 0, 6)
    assert moved(before, team.parts()) == []
    added = 0
    while not {"test", "fuse"} <= {part for name, part in team.parts().items() if "new" in name}:
        added += 1
        add(team.folder / "images" / "cat", added)
    drawn = {name: part for name, part in team.parts().items() if "new" in name}
    for name, part in drawn.items():
        if part.startswith("fit"):  # what members train on stays as it was
            (team.folder / "images" / name).unlink()
    more = team.sweep()
    assert (more.state, more.trained, more.reused) == ("done", 0, 6)
    assert moved(before, team.parts()) == []
    found, names = outputs(team), [name for name, part in drawn.items() if part == "test"]
    assert set(names) <= set(found["test_ids"].tolist())
    session = onnxruntime.InferenceSession(more.model)
    store = {name: np.asarray(Image.open(team.folder / "images" / name).convert("RGB").resize((16, 16))) for name in names}
    assert store
    logits = found["member/a/test_logits"][[found["test_ids"].tolist().index(name) for name in names]]
    assert np.isfinite(logits).all()
    assert session.get_inputs()[0].name == "images"


@pytest.mark.slow
def test_an_added_fit_image_trains_all_but_the_folds_that_leave_it_out_again(team: Team) -> None:
    team.sweep()
    before = team.parts()
    for number in range(40):
        add(team.folder / "images" / "dog", number, 1)
        if team.parts()[f"dog/new-{number:03d}.png"].startswith("fit"):
            break
    again = team.sweep()
    assert again.trained > 0
    assert moved(before, team.parts()) == []


@pytest.mark.slow
def test_a_renamed_class_moves_no_image(team: Team) -> None:
    team.sweep()
    before = team.parts()
    (team.folder / "images" / "cat").rename(team.folder / "images" / "kitten")
    after = {name.replace("kitten/", "cat/"): part for name, part in team.parts().items()}
    assert after == before
    again = team.sweep()
    assert (again.state, again.trained) == ("done", 6), "the members' answers have other names now"
    assert again.classes == ["dog", "eel", "kitten"]


@pytest.mark.slow
def test_a_shared_split_gives_the_same_weights_on_another_computer(team: Team, tmp_path: Path) -> None:
    first = team.sweep()
    (tmp_path / "other").mkdir()
    other = Team(tmp_path / "other", TEAM.replace("folds: 2", "folds: 2, split: split.csv"))
    parts = team.parts()
    (other.folder / "split.csv").write_text((team.folder / "split.csv").read_text())
    assert other.parts("again.csv") == parts
    again = other.sweep()
    assert {n: m.weights_sha256 for n, m in again.members.items()} == {n: m.weights_sha256 for n, m in first.members.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("fusion: [vote, stack]", "fusion: [vote, concat]"), "concat with `fuse: out_of_fold` needs `freeze: backbone`"),
        (("fusion: [vote, stack]", "fusion: [vote, student]"), "student learns from the rows that `fuse: out_of_fold` judges on"),
        (("folds: 2", "folds: 0"), "data.folds is needed with `fuse: out_of_fold`"),
    ],
)
def test_what_can_t_be_judged_out_of_fold_is_refused(change: tuple[str, str], says: str, team: Team) -> None:
    team.write(OUT_OF_FOLD.replace(*change))
    with pytest.raises(UserInputError) as found:
        team.sweep()
    assert says in str(found.value)
    assert not (team.folder / "home").exists()


OUT_OF_FOLD = TEAM.replace("folds: 2", "folds: 2, fuse: out_of_fold")


def test_without_a_fuse_part_fold_trainings_are_judged_and_full_ones_exported(team: Team) -> None:
    team.write(
        OUT_OF_FOLD.replace("[vote, stack]", "[vote, weighted, stack, stack_bag, cascade]").replace("version: 2", "version: 2")
    )
    summary = team.sweep()
    assert (summary.state, summary.trained) == ("done", 6)
    assert set(summary.fusions) == {"vote", "weighted", "stack", "stack_bag", "cascade"}
    folder = Home(team.folder / "home").sweep("tiny")
    details = folder.details()
    assert details is not None
    assert (details.choice.judged_on, details.choice.rows) == ("out-of-fold", 90)
    assert details.rows == {"fit": 90, "fuse": 90, "test": 30}
    assert summary.data.rows == {"fit": 90, "fuse": 0, "test": 30}
    assert {suspect.part for suspect in details.suspects} <= {"fit", "test"}
    report = folder.report.read_text()
    assert "90 out-of-fold images" in report
    assert "The fold trainings were compared" in report
    found = outputs(team)
    fold = found["fit_folds"]
    assert set(fold.tolist()) == {0, 1}
    assert found["member/a/fuse_logits"].shape == (90, 3)
    for k in (0, 1):
        record = next(
            path
            for path in (team.folder / "home" / "jobs").glob("*/fit/manifest.json")
            if (loaded := json.loads(path.read_text()))["fold"] == k and loaded["member"]["name"] == "a"
        )
        history = json.loads(record.read_text())["history"][-1]
        assert "fuse/accuracy" not in history
        held_out = found["member/a/fuse_logits"][fold == k].argmax(1) == found["fuse_labels"][fold == k]
        assert history["out_of_fold/accuracy"] == pytest.approx(held_out.mean(), abs=1e-6)
    assert team.sweep().trained == 0


@pytest.mark.slow
def test_a_member_whose_fold_failed_is_not_fused_where_folds_are_judged(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    team.write(OUT_OF_FOLD + "quorum: 1\nretries: {errors: 0}\n")
    monkeypatch.setenv("CONCLAVE_FAULT", "fit.step@b fold 1:1:nan")
    summary = team.sweep()
    assert summary.state == "partial"
    assert summary.members["a"].is_done
    assert not summary.members["b"].is_done
    assert "can't be judged: 1 fold training is missing (b fold 1:" in str(summary.members["b"].reason)


@pytest.mark.slow
def test_without_a_fuse_part_the_data_s_own_validation_images_are_trained_on(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(NETWORK)
    for part, count in (("train", 20), ("val", 10), ("test", 10)):
        classes(tmp_path / "images" / part, {"cat": count, "dog": count})
    for fuse, rows in (("part", {"fit": 40, "fuse": 20, "test": 20}), ("out_of_fold", {"fit": 60, "fuse": 0, "test": 20})):
        (tmp_path / "team.yaml").write_text(
            TEAM.replace("folds: 2", f"folds: 2, fuse: {fuse}").replace("[vote, stack]", "[vote]")
        )
        summary = sweep_inline(tmp_path / "team.yaml", tmp_path / "home").summary
        assert summary.data.rows == rows
        text = " ".join(summary.data.facts())
        assert ("with the folder val; fusions are chosen on its out-of-fold predictions" in text) == (fuse == "out_of_fold")
        assert ("fuse is the folder val" in text) == (fuse == "part")
