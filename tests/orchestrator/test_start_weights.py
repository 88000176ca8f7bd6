"""A network may start from a member of another sweep, unless that saw images which are judged here."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from orchestrator.cli import result_commands, team_commands
from orchestrator.home import Home
from orchestrator.results import SweepSummary
from tests.factories import sweep_inline
from tests.inputs import NETWORK, classes
from workers.errors import UserInputError
from workers.models.restore import restore
from workers.storage.artifacts import MemberArtifact

BASE = """\
version: 2
name: base
data: {dataset: folder, root: images, image_size: 16, folds: 0, fuse_fraction: 0.25}
train: {epochs: 1, batch_size: 16}
defaults: {arch: "small:Small", augment: [], optimizer: {kind: sgd, lr: 0.001}}
fusion: [vote]
members: [{name: a}, {name: b}]
"""
NEXT = BASE.replace("name: base", "name: next").replace("{name: a}", "{name: a, weights: base/a}")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished sweep, which no test changes."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "small.py").write_text(NETWORK)
    classes(folder / "images", {"cat": 40, "dog": 40})
    sweep(folder, BASE)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a finished sweep of its own."""
    (tmp_path / "small.py").write_text(NETWORK)
    classes(tmp_path / "images", {"cat": 40, "dog": 40})
    sweep(tmp_path, BASE)
    return tmp_path


def sweep(folder: Path, text: str) -> SweepSummary:
    (folder / "team.yaml").write_text(text)
    return sweep_inline(folder / "team.yaml", folder / "home").summary


def artifact(folder: Path, sweep_name: str, member: str) -> MemberArtifact:
    state = Home(folder / "home").sweep(sweep_name).state()
    assert state is not None
    return MemberArtifact.in_home(folder / "home", state.members[member][0])


def test_a_member_of_the_same_split_starts_where_the_other_ended(folder: Path) -> None:
    summary = sweep(folder, NEXT)
    assert (summary.state, summary.trained) == ("done", 1)
    before, after = (restore(artifact(folder, name, "a"), ["cat", "dog"], 16).state_dict() for name in ("base", "next"))
    fresh = restore(artifact(folder, "next", "b"), ["cat", "dog"], 16).state_dict()
    moved, other = ((before["trunk.0.weight"] - one["trunk.0.weight"]).abs().max() for one in (after, fresh))
    assert 0 < moved < other / 5
    team_commands.plan(folder / "team.yaml", folder / "home")
    result_commands.export("next", method="a", out=folder / "a.onnx", home=folder / "home")
    assert (folder / "a.onnx").is_file(), "later commands find the weights again"
    assert sweep(folder, NEXT).trained == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("image_size: 16", "image_size: 16, test_fraction: 0.4"), "of the test images here"),
        (("image_size: 16", "image_size: 24, test_fraction: 0.4"), "of the test images here"),
        (("fuse_fraction: 0.25", "fuse_fraction: 0.5"), "of the fuse images here"),
        (("folds: 0", "folds: 2, fuse: out_of_fold"), "of the fit images here: the folds leave them out in turn. Set"),
    ],
)
def test_a_member_that_saw_images_which_are_judged_here_is_refused(change: tuple[str, str], says: str, swept: Path) -> None:
    with pytest.raises(UserInputError, match="member a: weights: the member that it starts from was trained on") as found:
        sweep(swept, NEXT.replace(*change))
    assert says in str(found.value)
    assert Home(swept / "home").sweeps() == ["base"]


@pytest.mark.slow
def test_what_an_ancestor_saw_counts_as_well(folder: Path) -> None:
    sweep(folder, NEXT)
    classes(folder / "others", {"cat": 41, "dog": 41})
    third = NEXT.replace("name: next", "name: third").replace("base/a", "next/a").replace("root: images", "root: others")
    with pytest.raises(UserInputError, match=r"was trained on \d+ of the test images here"):
        sweep(folder, third)


def test_the_file_of_a_member_is_checked_as_well(swept: Path) -> None:
    file = artifact(swept, "base", "a").weights_file
    with pytest.raises(UserInputError, match="of the test images here"):
        sweep(swept, NEXT.replace("base/a", str(file)).replace("image_size: 16", "image_size: 16, test_fraction: 0.4"))


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("base/c", "base has no member c; it has a, b"),
        ("bas/a", "bas/a is no file, and in .*home: no sweep named 'bas'. Known: base"),
    ],
)
def test_a_member_that_is_not_there_is_named(reference: str, says: str, swept: Path) -> None:
    with pytest.raises(UserInputError, match=f"member a: weights: {says}"):
        sweep(swept, NEXT.replace("base/a", reference))


def test_a_smoke_run_starts_from_the_members_of_the_real_home(swept: Path) -> None:
    (swept / "smoke.yaml").write_text(NEXT)
    with pytest.raises(typer.Exit) as ended:
        team_commands.sweep(swept / "smoke.yaml", swept / "home", inline=True, smoke=True)
    assert ended.value.exit_code == 0
    assert Home(swept / "home").sweeps() == ["base"]
