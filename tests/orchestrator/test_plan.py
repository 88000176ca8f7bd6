"""The plan: what a fit's signature rests on, and what a fold fit costs."""

from pathlib import Path

import pytest

from orchestrator.execution.job_outcomes import Outcome
from orchestrator.planning import plan
from orchestrator.reporting.summary import member_states
from tests.factories import planned
from workers.config.specs import MemberRecord
from workers.errors import UserInputError

BASE = "name: t\ndata: {folds: 2}\ntrain: {epochs: 9}\nmembers: [{name: a, seed: 1}]\n"


def signatures(text: str, tmp_path: Path) -> list[str]:
    return [one.signature for one in planned(text, tmp_path).members]


def test_a_signature_stays_what_it_was(tmp_path: Path) -> None:
    """Where this fails, finished fits of every user would be trained again: raise RECIPE_VERSION if results changed."""
    assert plan.RECIPE_VERSION == 3
    assert signatures(BASE, tmp_path) == ["84f6dc050544c3fca783", "2974e2d2fefcf5f4f56a", "97eb7438c537db3907da"]


@pytest.mark.parametrize(
    "change",
    [
        ("members: [{name: a, seed: 1}]", "members: [{name: other, seed: 1, resources: {cpus: 2}}]"),
        ("name: t", "name: u"),
        ("data: {folds: 2}", "data: {folds: 2, max_bad: 3}"),
    ],
)
def test_what_does_not_change_the_result_changes_no_signature(change: tuple[str, str], tmp_path: Path) -> None:
    assert signatures(BASE.replace(*change), tmp_path) == signatures(BASE, tmp_path)


def test_a_share_of_the_epochs_makes_other_fold_fits_and_the_same_full_fit(tmp_path: Path) -> None:
    third = BASE.replace("epochs: 9", "epochs: 9, fold_epochs: 0.3334")
    jobs = planned(third, tmp_path).jobs
    assert [(job.fold, job.train.epochs) for job in jobs] == [(None, 9), (0, 3), (1, 3)]
    before, now = signatures(BASE, tmp_path), signatures(third, tmp_path)
    assert [a == b for a, b in zip(before, now, strict=True)] == [True, False, False]


def test_an_average_leaves_the_signature_of_its_member_and_is_made_by_the_same_job(tmp_path: Path) -> None:
    made = planned(BASE.replace("seed: 1}", "seed: 1, average: swa}"), tmp_path)
    by_label = {one.label: one.signature for one in made.members}
    assert [by_label[label] for label in ("a", "a fold 0", "a fold 1")] == signatures(BASE, tmp_path)
    assert [job.label for job in made.jobs] == ["a", "a fold 0", "a fold 1"]
    assert made.jobs[2].signatures == (by_label["a fold 1"], by_label["a.swa fold 1"])
    plain, swa = made.jobs[0].members
    assert [made.jobs[0].first_epoch(one) for one in (plain, swa)] == [0, 9], "nothing is trained for it"


def test_recipes_that_differ_in_their_names_alone_are_trained_once(tmp_path: Path) -> None:
    same = "{name: a, seed: 1}, {name: b, seed: 1}, {name: c, seed: 1, average: swa}, {name: d, seed: 1, average: ema}"
    made = planned(BASE.replace("{name: a, seed: 1}", same), tmp_path)
    assert [one.label for one in made.members][:6] == ["a", "b", "c", "c.swa", "d", "d.ema"]
    assert [job.label for job in made.jobs] == ["c", "d", "c fold 0", "d fold 0", "c fold 1", "d fold 1"]
    assert len({job.key for job in made.jobs}) == 6


STUDENT = BASE.replace("members:", "fusion: [vote, stack, student]\nstudent: {epochs: 5}\nmembers:")


def test_a_student_learns_from_all_full_fits_whatever_their_order(tmp_path: Path) -> None:
    two = STUDENT.replace("[{name: a, seed: 1}]", "[{name: a, seed: 1}, {name: b, seed: 2}]")
    swapped = STUDENT.replace("[{name: a, seed: 1}]", "[{name: b, seed: 2}, {name: a, seed: 1}]")
    made = planned(two, tmp_path)
    student = made.student
    assert student
    assert set(student.job.teachers) == {made.of_member(name)[0].signature for name in "ab"}
    assert (student.label, student.job.fold, student.job.train.epochs) == ("student", None, 5)
    assert signatures(two, tmp_path)[-1] == signatures(swapped, tmp_path)[-1]
    assert len({signatures(text, tmp_path)[-1] for text in (two, STUDENT, two.replace("epochs: 5", "soft: 0.5"))}) == 3
    assert signatures(STUDENT, tmp_path)[:-1] == signatures(BASE, tmp_path), "no member is another one for it"


def test_a_student_that_begins_from_a_member_is_another_by_that_members_fit(tmp_path: Path) -> None:
    two = STUDENT.replace("[{name: a, seed: 1}]", "[{name: a, seed: 1}, {name: b, seed: 2}]")
    from_a, from_b = (two.replace("epochs: 5", f"epochs: 5, start: {name}") for name in "ab")
    renamed = from_a.replace("name: a", "name: c").replace("start: a", "start: c")
    student = planned(from_a, tmp_path).student
    assert student
    assert student.job.start == planned(two, tmp_path).of_member("a")[0].signature
    found = [signatures(text, tmp_path)[-1] for text in (two, from_a, from_b, renamed)]
    assert len(set(found)) == 3
    assert found[3] == found[1], "names say nothing of a fit"


@pytest.mark.parametrize(
    ("imported", "helper"),
    [
        ("import helpers", "helpers.py"),
        ("from helpers import block", "helpers/__init__.py"),
        ("from parts import helpers", "parts/helpers.py"),
        ("from .helpers import block", "helpers.py"),
    ],
)
def test_a_signature_covers_the_modules_that_a_custom_network_imports(imported: str, helper: str, tmp_path: Path) -> None:
    package = "models." if imported.startswith("from .") else ""
    root = tmp_path / "models" if package else tmp_path
    (root / helper).parent.mkdir(parents=True, exist_ok=True)
    (root / "net.py").write_text(f"import torch\n{imported}\n")

    hashes = []
    for content in ("width = 1\n", "width = 2\n", "width = 2  # a comment\n"):
        (root / helper).write_text(content)
        hashes.append(plan._code_sha256(f"{package}net", (str(tmp_path),), "arch"))
    assert hashes[0] != hashes[1] == hashes[2]


def test_a_module_that_is_no_python_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("x = 1\ndef Net(:\n")
    with pytest.raises(UserInputError, match=r"net\.py:2: not Python"):
        plan._code_sha256("net", (str(tmp_path),), "arch")


def test_a_member_is_read_back_from_its_manifest_whatever_its_recipe_says(tmp_path: Path) -> None:
    """Labels of machines are pairs there, and an average, a pack and an optimizer have forms of their own."""
    text = BASE.replace(
        "seed: 1}", "seed: 1, average: swa, optimizer: adamw, resources: {labels: [{market: spot, zone: a}, {x: y}]}}"
    )
    [plain, swa, *_] = planned(text, tmp_path).members
    for one in (plain, swa):
        written = one.job.recipe.record(one.member)
        assert MemberRecord.model_validate_json(written.model_dump_json()) == written
        assert written.fingerprint_fields() == one.job.recipe.fingerprint_fields(one.member)


def test_a_member_whose_training_ran_for_an_equal_recipe_has_its_outcome(tmp_path: Path) -> None:
    made = planned(BASE.replace("{name: a, seed: 1}", "{name: a, seed: 1}, {name: c, seed: 1, average: swa}"), tmp_path)
    [job] = [job for job in made.jobs if job.fold is None]
    states = member_states(made, {job.key: Outcome(job, "diverged", "no number")})
    assert {name: state.state for name, state in states.items()} == dict.fromkeys(("a", "c", "c.swa"), "diverged")
