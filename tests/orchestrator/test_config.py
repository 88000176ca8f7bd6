"""The team file: its form, its defaults, and every way it can be wrong."""

import contextlib
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from orchestrator.config import loader as config
from orchestrator.config import yaml_document as teamfile
from orchestrator.config.team import Team
from orchestrator.config.team_file import TeamFile
from tests.factories import ROOT
from workers.errors import UserInputError
from workers.training.optimizers.adamw import AdamW
from workers.training.optimizers.sgd import Sgd
from workers.training.schedules.step import StepSchedule

FULL = """\
version: 1
name: cifar-team
seed: 0
data:
  dataset: cifar10
  root: data
  image_size: 32
  fuse_fraction: 0.1
  folds: 5
train:
  epochs: 50
  batch_size: 128
  accumulate: 1
  schedule: {kind: step, every: 30, factor: 0.1}
  precision: auto
defaults: {arch: resnet18, stem: auto, optimizer: {kind: sgd, lr: 0.1}, augment: [flip, crop]}
members:
  - {name: plain}
  - {name: adamw, optimizer: {kind: adamw, lr: 0.001}}
  - {name: rotated, augment: [flip, {rotate: 15}, cutout], seed: 3}
  - {name: seeds, count: 3, seed: 10}
fusion: [vote, weighted, concat, stack]
resources: {gpus: 1, cpus: 1}
tracking: {uri: null, experiment: null}
quorum: 2
"""


def parsed(text: str) -> Team:
    return config.resolve_team(teamfile.parse_document(text, Path("/somewhere/team.yaml")))


def test_the_fixed_form_is_read_whole() -> None:
    team = parsed(FULL)
    assert [m.name for m in team.members] == ["plain", "adamw", "rotated", "seeds-1", "seeds-2", "seeds-3"]
    assert [m.seed for m in team.members[2:]] == [3, 10, 11, 12]
    assert team.members[0].optimizer == Sgd(lr=0.1)
    assert team.members[1].optimizer == AdamW(lr=0.001)
    assert [(a.name, a.strength) for a in team.members[2].augment] == [("flip", 0.5), ("rotate", 15.0), ("cutout", 0.5)]
    assert team.train.schedule == StepSchedule(every=30, factor=0.1)
    assert team.members[0].resources.gpus == 1
    assert team.data.root == Path("/somewhere/data")


def test_names_stand_for_mappings_and_defaults_fill_the_rest() -> None:
    team = parsed("name: t\ntrain: {schedule: cosine}\nmembers: [{name: a, optimizer: adamw}]")
    assert team.members[0].optimizer == AdamW()
    assert team.train.schedule.kind == "cosine"
    assert (team.data.dataset, team.data.size, team.quorum) == ("digits", 8, 1)


def test_a_seed_left_out_derives_from_team_seed_and_name() -> None:
    def seed(team_seed: int, name: str) -> int:
        return parsed(f"name: t\nseed: {team_seed}\nmembers: [{{name: {name}}}]").members[0].seed

    assert seed(0, "a") == seed(0, "a")
    assert len({seed(0, "a"), seed(1, "a"), seed(0, "b")}) == 3


def test_snapshots_share_their_seed_and_only_they_carry_a_cycle() -> None:
    team = parsed("name: t\nmembers: [{name: a}, {name: c, snapshots: 3}, {name: d, count: 2, snapshots: 2}]")
    assert [m.name for m in team.members] == ["a", "c.1", "c.2", "c.3", "d-1.1", "d-1.2", "d-2.1", "d-2.2"]
    assert len({m.seed for m in team.members[1:4]}) == 1
    assert [m.cycle for m in team.members[1:4]] == [1, 2, 3]
    assert not {"cycle", "cycles"} & {*team.members[0].fingerprint_fields()}
    assert "cycles" not in team.members[1].fingerprint_fields(), "what was trained before there were any is not trained again"


def test_an_average_is_a_member_beside_the_one_along_which_it_is_taken() -> None:
    team = parsed("name: t\nmembers: [{name: a, average: swa}, {name: b, count: 2, average: {kind: ema, decay: 0.9}}]")
    assert [(m.name, m.averaged) for m in team.members] == [
        ("a", False), ("a.swa", True), ("b-1", False), ("b-1.ema", True), ("b-2", False), ("b-2.ema", True)
    ]  # fmt: skip
    assert team.members[0].seed == team.members[1].seed
    assert "average" not in team.members[0].fingerprint_fields()
    assert team.members[1].fingerprint_fields()["average"] == {"kind": "swa", "last": 0.25}


def test_a_student_is_a_recipe_by_the_defaults() -> None:
    text = "name: t\nfusion: [vote, student]\ndefaults: {width: 8, optimizer: {kind: sgd, lr: 1}}\nmembers: [{name: a}]\n"
    assert parsed(text.replace(", student", "")).student is None
    student = parsed(text).student
    assert student
    assert (student.name, student.width, student.optimizer, student.soft) == ("student", 8, Sgd(lr=1), 1.0)
    own = parsed(text + "student: {epochs: 99, soft: 0.5, temperature: 2, optimizer: adamw, seed: 7}\n").student
    assert own
    assert (own.epochs, own.soft, own.temperature, own.optimizer, own.seed) == (99, 0.5, 2, AdamW(), 7)


def test_another_optimizer_replaces_that_of_the_defaults() -> None:
    same = parsed(
        "name: t\ndefaults: {optimizer: {kind: sgd, momentum: 0.5}}\nmembers: [{name: a, optimizer: {kind: sgd, lr: 1}}]"
    )
    assert same.members[0].optimizer == Sgd(lr=1, momentum=0.5)
    text = "name: t\ndefaults: {optimizer: {kind: sgd, momentum: 0.5}}\nmembers: [{name: a, optimizer: {kind: adamw}}, "
    team = parsed(text + "{name: b, optimizer: {lr: 1}}]")
    assert team.members[0].optimizer == AdamW()
    assert team.members[1].optimizer == Sgd(lr=1, momentum=0.5)


EXAMPLES = [*sorted(ROOT.glob("examples/*.yaml")), *sorted(ROOT.glob("examples/*/team.yaml"))]


@pytest.mark.parametrize("path", EXAMPLES, ids=str)
def test_the_examples_are_valid(path: Path) -> None:
    assert config.load_team(path).name == (path.parent.name if path.stem == "team" else path.stem)


@pytest.mark.parametrize("path", [*EXAMPLES, ROOT / "orchestrator/cli/templates/team.yaml"], ids=str)
def test_the_schema_for_editors_accepts_what_is_valid(path: Path) -> None:
    jsonschema.validate(YAML(typ="safe", pure=True).load(path), TeamFile.model_json_schema())


SHORT = """\
name: t
train: {schedule: cosine}
retries: 2
defaults: {optimizer: adamw, average: swa, resources: {labels: [{market: spot}, {zone: a}]}}
members:
  - name: a
    augment: [flip, {rotate: 15}, "own:Posterize", {"own:Noise": 0.1}]
    optimizer: {lr: 0.1}
    average: {kind: swa, last: 0.5}
  - {name: b, arch: "own:Net", optimizer: {kind: "own:Lion", lr: 0.1, betas: 3}, resources: {labels: {market: spot}}}
fusion: [vote, stack]
student: {soft: 0.5}
prices: {spot: 0.1, own: {price: 1000}}
"""


def test_the_schema_for_editors_knows_the_short_forms_and_refuses_what_is_wrong() -> None:
    schema = TeamFile.model_json_schema()
    values = YAML(typ="safe", pure=True).load(SHORT)
    jsonschema.validate(values, schema)
    TeamFile.model_validate(teamfile.parse_document(SHORT, Path("t")).values)
    for change in (
        {"sede": 1},
        {"fusion": ["votes"]},
        {"train": {"schedule": "never"}},
        {"members": [{"name": "a", "cycle": 1}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**values, **change}, schema)
    entry = schema["$defs"]["MemberEntry"]["properties"]
    assert "snapshots" in entry
    assert not {"cycle", "averaged", "pick"} & {*entry}, "nobody writes what follows from the rest"


HEAD = "name: t\n"
ONE = "members: [{name: a}]\n"
BAD = {
    "unknown key": (HEAD + ONE + "sede: 1\n", 3, "did you mean seed?"),
    "unknown nested key": (HEAD + ONE + "data:\n  fold: 3\n", 4, "did you mean folds?"),
    "wrong type": (HEAD + ONE + "seed: one\n", 3, "integer"),
    "text for a number": (HEAD + ONE + "train: {epochs: '5'}\n", 3, "integer"),
    "bool for a number": (HEAD + ONE + "train: {epochs: true}\n", 3, "integer"),
    "duplicate YAML key": (HEAD + ONE + "seed: 1\nseed: 2\n", 4, "duplicate key"),
    "duplicate member": (HEAD + "members:\n  - {name: a}\n  - {name: A}\n", 4, "taken (line 3)"),
    "zero members": (HEAD + "members: []\n", 2, "at least one member"),
    "no members": (HEAD, 1, "members: required key is missing"),
    "lr NaN": (HEAD + "members: [{name: a, optimizer: {kind: sgd, lr: .nan}}]\n", 2, "finite"),
    "lr negative": (HEAD + "members: [{name: a, optimizer: {kind: sgd, lr: -1}}]\n", 2, "greater than 0"),
    "batch 0": (HEAD + ONE + "train: {batch_size: 0}\n", 3, "greater than or equal to 2"),
    "name with a path": ("name: ../x\n" + ONE, 1, "starts with a letter"),
    "member name with a path": (HEAD + "members: [{name: ../x}]\n", 2, "starts with a letter"),
    "one fold": (HEAD + ONE + "data: {folds: 1}\n", 3, "at least 2"),
    "image size": (HEAD + ONE + "data: {image_size: 4}\n", 3, "greater than or equal to 8"),
    "a home of nobody": (HEAD + ONE + "data: {dataset: folder, root: ~nosuchuser/x}\n", 3, "there is no user 'nosuchuser'"),
    "a null byte in a path": (HEAD + ONE + 'data: {dataset: folder, root: "a\\0b"}\n', 3, "data.root: it holds a null byte"),
    "weights of a null byte": (HEAD + 'members: [{name: a, weights: "a\\0b"}]\n', 2, "members[0].weights: it holds a null byte"),
    "a price of no time": (HEAD + ONE + "prices: {own: {price: 1, years: 1.0e-300}}\n", 3, "prices.own.years"),
    "a million trainings": (HEAD + "members: [{name: a, count: 1000}]\ndata: {folds: 999}\n", 2, "1,000,000 trainings; the most"),
    "a line without an end": (HEAD + ONE + "x: !<" + "a" * 200_000 + ">\n", None, "a line of 200,00"),
    "folder without root": (HEAD + ONE + "data: {dataset: folder}\n", 3, "data.root is needed"),
    "unknown data set": (HEAD + ONE + "data: {dataset: mnist}\n", 3, "digits"),
    "unknown arch": (HEAD + "members: [{name: a, arch: resnet81}]\n", 2, "nearest known is resnet18"),
    "an optimizer's misspelt key": (
        HEAD + "members: [{name: a, optimizer: {kind: sgd, momentun: 0.5}}]\n",
        2,
        "did you mean momentum?",
    ),
    "a schedule's unknown key": (HEAD + ONE + "train: {schedule: {kind: step, often: 3}}\n", 3, "known keys: "),
    "unknown augmentation": (HEAD + "members: [{name: a, augment: [flop]}]\n", 2, "did you mean flip? Known are color"),
    "unknown fusion": (HEAD + ONE + "fusion: [votes]\n", 3, "vote"),
    "more snapshots than epochs": (HEAD + "train: {epochs: 3}\nmembers: [{name: a, snapshots: 4}]\n", 3, "need as many epochs"),
    "cycles without snapshots": (HEAD + "members: [{name: a, cycles: {first: 0.5}}]\n", 2, "set snapshots to 2 or more"),
    "a cycle without an epoch": (
        HEAD + "train: {epochs: 4}\nmembers: [{name: a, snapshots: 3, cycles: {first: 0.9}}]\n",
        3,
        "cycles of [4, 0, 0] epochs",
    ),
    "a cycle, which nobody writes": (HEAD + "members: [{name: a, snapshots: 2, cycle: 3}]\n", 2, "cycle: unknown key"),
    "averaged, which nobody writes": (HEAD + "members: [{name: a, averaged: true}]\n", 2, "averaged: unknown key"),
    "a pick, which nobody writes": (HEAD + "members: [{name: a, pick: 1}]\n", 2, "pick: unknown key"),
    "a bag without fold fits": (HEAD + ONE + "data: {folds: 0}\nfusion: [vote, stack_bag]\n", 4, "set data.folds"),
    "shared key in a member": (HEAD + "members: [{name: a, epochs: 3}]\n", 2, "Set it under `train:`"),
    "a student that nobody asks for": (HEAD + ONE + "student: {soft: 0.5}\n", 3, "add student there"),
    "a batch too small to share": (HEAD + ONE + "resources: {gpus: 4}\ntrain: {batch_size: 7}\n", 2, "less than two images"),
    "a search of nothing": (HEAD + "members:\n  - {name: a, search: {trials: 5}}\n", 3, "nothing to search"),
    "a search by names alone": (
        HEAD + "members:\n  - {name: a, search: {trials: 2, optimizer: [sgd, adamw]}}\n",
        3,
        "Compare optimizers alone by members",
    ),
    "a range the wrong way": (
        HEAD + "members:\n  - {name: a, search: {trials: 5, lr: [0.3, 0.1]}}\n",
        3,
        "the smaller one first",
    ),
    "more kept than tried": (HEAD + "members:\n  - {name: a, search: {trials: 2, keep: 3, lr: [1, 2]}}\n", 3, "keep is 3, but"),
    "too strong": (HEAD + "members:\n  - {name: a, search: {trials: 2, augment: {flip: [0.1, 2]}}}\n", 3, "at most 1"),
    "a search of snapshots": (
        HEAD + "members:\n  - {name: a, snapshots: 2, search: {trials: 2, lr: [1, 2]}}\n",
        3,
        "together with snapshots, average",
    ),
    "a label that is none": (HEAD + ONE + "resources: {labels: {market: [spot]}}\n", 3, "labels of machines like"),
    "labels of nothing": (HEAD + ONE + "resources: {labels: [{}]}\n", 3, "labels of machines like"),
    "a student with a batch size": (HEAD + ONE + "fusion: [student]\nstudent: {batch_size: 5}\n", 4, "Set it under `train:`"),
    "a student with a name": (HEAD + ONE + "fusion: [student]\nstudent: {name: x}\n", 4, "leave it out"),
    "packed members": (HEAD + "members: [{name: a, count: 2, packed: true}]\n", 2, "packed members were removed"),
    "a student that begins from nobody": (HEAD + ONE + "fusion: [student]\nstudent: {start: x}\n", 4, "x is no member"),
    "a student that begins from another network": (
        HEAD + ONE + "fusion: [student]\nstudent: {start: a, width: 8}\n",
        4,
        "a different network",
    ),
    "a student that is none": (HEAD + ONE + "fusion: [student]\nstudent: 3\n", 4, "expected a mapping"),
    "a student's unknown key": (HEAD + ONE + "fusion: [student]\nstudent: {temprature: 3}\n", 4, "did you mean temperature?"),
    "a student's hard labels alone": (HEAD + ONE + "fusion: [student]\nstudent: {soft: 0}\n", 4, "greater than 0"),
    "a default that is wrong for a student": (HEAD + ONE + "fusion: [student]\ndefaults: {width: 0}\n", 4, "greater than"),
    "an average of snapshots": (HEAD + "members: [{name: a, snapshots: 2, average: swa}]\n", 2, "doesn't go together"),
    "an unknown average": (HEAD + "members: [{name: a, average: mean}]\n", 2, "swa"),
    "an average of no kind": (HEAD + "members: [{name: a, average: {last: 0.5}}]\n", 2, "average: say which kind: add `kind`"),
    "an average's decay": (HEAD + "members: [{name: a, average: {kind: ema, decay: 2}}]\n", 2, "less than 1"),
    "a fusion's name": (HEAD + "members: [{name: vote}]\n", 2, "a fusion's name"),
    "count 0": (HEAD + "members: [{name: a, count: 0}]\n", 2, "greater than or equal to 1"),
    "adamw with momentum": (
        HEAD + "members: [{name: a, optimizer: {kind: adamw, momentum: 0.9}}]\n",
        2,
        "unknown key; known keys: kind, lr",
    ),
    "not a mapping": ("- a\n- b\n", 1, "mapping"),
    "a tag": (HEAD + ONE + "seed: !!python/object/apply:os.system [ls]\n", None, "tag"),
    "not YAML": ("name: [\n", 2, ""),
}


@pytest.mark.parametrize(("text", "line", "expected"), BAD.values(), ids=BAD.keys())
def test_a_bad_team_file_is_rejected_with_its_line(text: str, line: int | None, expected: str) -> None:
    with pytest.raises(UserInputError) as caught:
        parsed(text)
    message = str(caught.value)
    assert expected in message
    if line:
        assert f"/somewhere/team.yaml:{line}:" in message


def test_several_errors_are_reported_at_once() -> None:
    with pytest.raises(UserInputError) as caught:
        parsed("name: t\nsede: 1\ntrain: {epochs: 0}\nmembers: [{name: a, arch: resnet81}]\n")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("members", ["1," * 20_001, "\n" * 20_001, "[" * 201 + "]" * 201])
def test_a_file_that_takes_many_seconds_to_parse_is_refused_before(members: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teamfile, "YAML", lambda **_: pytest.fail("it is parsed"))
    with pytest.raises(UserInputError, match="more than 20000 lines and entries, or more than 200 nested brackets"):
        parsed(f"name: t\nmembers: [{members}]\n")


def test_more_members_than_anybody_trains_are_refused_before_they_are_expanded() -> None:
    text = "name: t\ndefaults: {snapshots: 5}\nmembers:\n" + "".join(f"  - {{name: m{i}, count: 1000}}\n" for i in range(3))
    with pytest.raises(UserInputError, match=r"team\.yaml:3: members: 15000 of them; a team has 10000 at most"):
        parsed(text)


def test_an_alias_bomb_ends_early() -> None:
    layers = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(UserInputError, match="more than"):
        parsed("x0: &x0 [1]\n" + layers)


@settings(max_examples=150)
@given(st.integers(0, len(FULL) - 1), st.text(max_size=6), st.integers(0, 12))
def test_a_mutated_team_file_never_gives_a_traceback(at: int, insert: str, drop: int) -> None:
    with contextlib.suppress(UserInputError):
        parsed(FULL[:at] + insert + FULL[at + drop :])
