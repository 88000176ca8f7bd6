"""`conclave init PHOTOS` looks at images and proposes a team file that is valid; `sweep --smoke` tries it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli import data_commands, team_commands
from orchestrator.config.loader import load_team
from orchestrator.config.proposal import Facts, propose
from orchestrator.config.team import Team
from tests.factories import snapshot
from tests.inputs import NETWORK, classes, flat, picture, write_table
from workers.config.specs import DataSpec
from workers.data.layout import Item, thinned
from workers.errors import UserInputError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def proposed(source: Path, scratch: bool = False) -> tuple[Team, str]:
    """The team that is proposed, and its file's text."""
    target = Path("team.yaml")
    target.unlink(missing_ok=True)
    data_commands.init(source, target, scratch)
    return load_team(target), target.read_text()


def test_few_photos_get_frozen_backbones_and_no_fuse_part(here: Path) -> None:
    team, text = proposed(classes(here / "pets", {"cat": 30, "dog": 30}))
    assert team.name == "pets"
    assert team.data.root == here / "pets"
    assert (team.data.fuse, team.data.folds, team.data.image_size) == ("out_of_fold", 10, 224)
    assert all((one.freeze, str(one.weights)) == ("backbone", "imagenet") for one in team.trainings)
    assert len({one.arch for one in team.trainings}) == 3
    assert "concat" in team.fusion
    assert "48 images are too few to set some apart" in text
    assert (here / "conclave.schema.json").is_file()


def test_every_setting_but_names_and_paths_has_its_reason(here: Path) -> None:
    lines = proposed(classes(here / "pets", {"cat": 60, "dog": 3}))[1].splitlines()
    explained = [lines[i + 1].strip().split(":")[0] for i, line in enumerate(lines) if line.strip().startswith("#") and i > 2]
    wanted = {
        "dataset",
        "image_size",
        "test_fraction",
        "fuse",
        "folds",
        "train",
        "weights",
        "freeze",
        "members",
        "fusion",
        "metric",
    }
    assert wanted <= set(explained)


def facts(images: int, side: int = 500, **keys: Any) -> Facts:
    return Facts(
        DataSpec(dataset="folder", root=Path("/photos")), {"x": images // 2, "y": images // 2}, frozenset(), side, **keys
    )


def team_for(given: Facts, here: Path, scratch: bool = False) -> Team:
    (here / "team.yaml").write_text(propose(given, here / "team.yaml", scratch))
    return load_team(here / "team.yaml")


def test_many_images_get_a_fuse_part(here: Path) -> None:
    team = team_for(facts(20_000), here)
    assert (team.data.fuse, team.data.fuse_fraction, team.data.folds) == ("part", 0.1, 5)


def test_many_small_images_are_trained_from_scratch_at_their_size(here: Path) -> None:
    team = team_for(facts(20_000, side=32), here)
    assert {one.weights for one in team.trainings} == {None}
    assert team.data.image_size == 32
    assert team_for(facts(2_000, side=32), here).trainings[0].freeze == "backbone", "too few to train from scratch"


def test_without_published_weights_networks_are_trained_from_scratch(here: Path) -> None:
    team, _ = proposed(classes(here / "pets", {"cat": 30, "dog": 30}), scratch=True)
    assert {one.weights for one in team.trainings} == {None}
    assert {one.freeze for one in team.trainings} == {None}
    assert "concat" not in team.fusion


def test_parts_of_the_data_are_used(here: Path) -> None:
    for part in ("train", "val", "test"):
        classes(here / "pets" / part, {"cat": 30, "dog": 30})
    _, text = proposed(here / "pets")
    assert "test_fraction" not in text
    given = facts(20_000)
    both = Facts(given.spec, given.counts, frozenset({"train", "val", "test"}), 500)
    assert "fraction" not in propose(both, here / "team.yaml")


def test_a_rare_class_is_weighed_and_counted_alike(here: Path) -> None:
    team, text = proposed(classes(here / "pets", {"cat": 40, "dog": 3}))
    assert {one.class_weights for one in team.trainings} == {"balanced"}
    assert team.metric == "balanced_accuracy"
    assert "cat has 40 images, and dog 3" in text


def test_a_table_of_other_columns_with_images_in_a_folder_is_understood(here: Path) -> None:
    (here / "birds" / "images").mkdir(parents=True)
    for number in range(24):
        picture(number % 2, number).save(here / "birds" / "images" / f"{number:03}.png")
    rows = [f"{number:03},{'robin' if number % 2 else 'wren'},nest {number // 4}" for number in range(24)]
    (here / "birds" / "list.csv").write_text("\n".join(["image_id,Species,burst", *rows]))
    for source in (here / "birds" / "list.csv", here / "birds"):
        team, text = proposed(source)
        assert team.name == "birds"
        assert team.data.columns == {"path": "image_id", "label": "Species", "group": "burst"}
        assert (team.data.extension, team.data.root) == (".png", here / "birds" / "images")
        assert team.data.folds == 3
        assert "Images of a group stay together" in text


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda here: here / "nowhere", "there is no such folder or file"),
        (lambda here: flat(here / "flat", 4), "is in no class folder"),
        (lambda here: classes(here / "one", {"cat": 3}), "at least two classes"),
        (lambda here: write_table(here / "t.csv", ["path,label", "gone.png,x"]), "the file is not there"),
    ],
)
def test_what_can_t_be_read_is_a_sentence_and_nothing_is_written(make: Callable[[Path], Path], says: str, here: Path) -> None:
    source = make(here)
    before = snapshot(here)
    with pytest.raises(UserInputError) as found:
        data_commands.init(source, Path("team.yaml"))
    assert says in str(found.value)
    assert snapshot(here) == before


def test_without_images_the_file_is_for_digits(here: Path) -> None:
    data_commands.init(Path("first.yaml"))
    assert load_team(here / "first.yaml").name == "digits"
    with pytest.raises(UserInputError, match=r"first.yaml: exists already"):
        data_commands.init(Path("first.yaml"))


def item(number: int, label: str, group: str = "", part: str = "") -> Item:
    return Item(f"{number}", label, part, b"", group)


def test_a_thinned_data_set_keeps_classes_parts_and_as_many_groups_as_it_can() -> None:
    items = [item(i, "xy"[i % 2], f"g{i // 10}", "train" if i < 80 else "test") for i in range(100)]
    kept = thinned(items, 4)
    assert [int(one.id) for one in kept] == sorted(int(one.id) for one in kept)
    counts = {(p, c): [one for one in kept if (one.part, one.label) == (p, c)] for p in ("train", "test") for c in "xy"}
    assert all(len(found) == 4 for found in counts.values())
    assert len({one.group for one in counts["train", "x"]}) == 4
    assert thinned(items, 1000) == items


SMOKE = """\
version: 2
name: tiny
data: {dataset: folder, root: pets, image_size: 16, folds: 3}
train: {epochs: 400, batch_size: 8}
defaults: {arch: "small:Small", augment: []}
fusion: [vote, concat, stack, student]
members: [{name: a}, {name: b, snapshots: 2}]
"""


@pytest.fixture
def smoked(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary homes would be."""
    classes(here / "pets", {"cat": 80, "dog": 80})
    (here / "small.py").write_text(NETWORK)
    (here / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "tmp"))
    return here / "tmp"


def test_a_smoke_run_goes_through_the_whole_chain_and_leaves_nothing(
    here: Path, smoked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "team.yaml").write_text(SMOKE)
    monkeypatch.setenv("CONCLAVE_TRACKING_URI", "http://127.0.0.1:9")
    before = {path.name for path in here.iterdir()}
    with pytest.raises(typer.Exit) as ended:
        team_commands.sweep(here / "team.yaml", here / "home", inline=True, smoke=True)
    assert ended.value.exit_code == 0
    assert "The whole chain works: 13 trainings, 4 fusions, one model" in capsys.readouterr().out
    assert list(smoked.glob("conclave-*")) == []
    assert {path.name for path in here.iterdir()} - {"__pycache__"} == before


def test_a_smoke_run_shows_what_fails_and_keeps_its_logs(here: Path, smoked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "team.yaml").write_text(SMOKE.replace("[vote, concat, stack, student]", "[vote]") + "retries: {errors: 0}\n")
    (here / "small.py").write_text(
        NETWORK + "    def forward(self, x):\n        assert self.training\n        return super().forward(x)\n"
    )
    with pytest.raises(typer.Exit) as ended:
        team_commands.sweep(here / "team.yaml", here / "home", inline=True, smoke=True)
    assert ended.value.exit_code == 1
    out = capsys.readouterr().out
    assert "The chain does not work yet: failed" in out
    assert "AssertionError" in out
    logs = Path(out.strip().rsplit(" ", 1)[1].rstrip("."))
    assert list(logs.glob("*.log"))
    assert not (here / "home").exists()


def test_a_smoke_run_is_on_this_machine(here: Path) -> None:
    with pytest.raises(UserInputError, match="--smoke tries the team on this machine"):
        team_commands.sweep(here / "team.yaml", smoke=True, address="here:1")
