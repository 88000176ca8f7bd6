"""The plan: what a fit's signature rests on, and what a fold fit costs."""

from pathlib import Path

import pytest

from orchestrator.planning import plan
from tests.factories import planned
from workers.errors import UserInputError

BASE = "name: t\ndata: {folds: 2}\ntrain: {epochs: 9}\nmembers: [{name: a, seed: 1}]\n"


def signatures(text: str, tmp_path: Path) -> list[str]:
    return [job.signature for job in planned(text, tmp_path).jobs]


def test_a_signature_stays_what_it_was(tmp_path: Path) -> None:
    """Where this fails, finished fits of every user would be trained again: raise RECIPE_VERSION if results changed."""
    assert plan.RECIPE_VERSION == 2
    assert signatures(BASE, tmp_path) == ["1194cec8f48b0304c7ad", "bb7eee8926964e00dfd2", "06620d9e30e2c3c9b13f"]


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


def test_an_average_leaves_the_signature_of_its_member_and_comes_after_it(tmp_path: Path) -> None:
    jobs = planned(BASE.replace("seed: 1}", "seed: 1, average: swa}"), tmp_path).jobs
    by_label = {job.label: job for job in jobs}
    assert [by_label[label].signature for label in ("a", "a fold 0", "a fold 1")] == signatures(BASE, tmp_path)
    assert by_label["a.swa fold 1"].after == by_label["a fold 1"].signature
    assert by_label["a"].followed
    assert not by_label["a.swa"].followed
    assert by_label["a.swa"].epochs == (9, 9), "it trains nothing"


def test_members_trained_at_once_follow_one_another_and_know_each_others_seeds(tmp_path: Path) -> None:
    pack = BASE.replace("{name: a, seed: 1}", "{name: a, seed: 1, count: 3, packed: true}")
    jobs = {job.label: job for job in planned(pack, tmp_path).jobs}
    assert [jobs[label].member.packed for label in ("a-1", "a-3")] == [(1, 2, 3)] * 2
    assert jobs["a-1"].after is None
    assert jobs["a-2 fold 1"].after == jobs["a-1 fold 1"].signature
    assert jobs["a-3"].after == jobs["a-2"].signature
    assert [jobs[f"a-{k}"].followed for k in (1, 2, 3)] == [True, True, False]
    fold = jobs["a-2 fold 1"].recipe
    assert fold.packed.index(fold.seed) == 1, "each fold's seeds are its own"
    assert not {*fold.packed} & {1, 2, 3}
    apart = signatures(pack.replace(", packed: true", ""), tmp_path)
    assert apart == signatures(pack.replace("packed: true", "packed: false"), tmp_path)
    assert not {*apart} & {job.signature for job in jobs.values()}, "up to rounding is not bit for bit"


STUDENT = BASE.replace("members:", "fusion: [vote, stack, student]\nstudent: {epochs: 5}\nmembers:")


def test_a_student_learns_from_all_full_fits_whatever_their_order(tmp_path: Path) -> None:
    two = STUDENT.replace("[{name: a, seed: 1}]", "[{name: a, seed: 1}, {name: b, seed: 2}]")
    swapped = STUDENT.replace("[{name: a, seed: 1}]", "[{name: b, seed: 2}, {name: a, seed: 1}]")
    made = planned(two, tmp_path)
    student = made.student
    assert student
    assert set(student.teachers) == set(student.needs) == {made.jobs_of(name)[0].signature for name in "ab"}
    assert (student.label, student.fold, student.train.epochs) == ("student", None, 5)
    assert signatures(two, tmp_path)[-1] == signatures(swapped, tmp_path)[-1]
    assert len({signatures(text, tmp_path)[-1] for text in (two, STUDENT, two.replace("epochs: 5", "soft: 0.5"))}) == 3
    assert signatures(STUDENT, tmp_path)[:-1] == signatures(BASE, tmp_path), "no member is another one for it"


def test_compiling_is_part_of_a_fit_where_it_is_asked_for_alone(tmp_path: Path) -> None:
    found = [signatures(BASE.replace("epochs: 9", f"epochs: 9{more}"), tmp_path) for more in ("", ", compile: false")]
    assert found[0] == found[1], "what was trained before is not trained again"
    asked = [signatures(BASE.replace("epochs: 9", f"epochs: 9, compile: {how}"), tmp_path) for how in ("true", "max-autotune")]
    assert not {*found[0]} & {*asked[0]}
    assert not {*asked[0]} & {*asked[1]}


def test_a_student_that_begins_from_a_member_is_another_by_that_members_fit(tmp_path: Path) -> None:
    two = STUDENT.replace("[{name: a, seed: 1}]", "[{name: a, seed: 1}, {name: b, seed: 2}]")
    from_a, from_b = (two.replace("epochs: 5", f"epochs: 5, start: {name}") for name in "ab")
    renamed = from_a.replace("name: a", "name: c").replace("start: a", "start: c")
    assert planned(from_a, tmp_path).student.start == planned(two, tmp_path).jobs_of("a")[0].signature  # type: ignore[union-attr]
    found = [signatures(text, tmp_path)[-1] for text in (two, from_a, from_b, renamed)]
    assert len(set(found)) == 3
    assert found[3] == found[1], "names say nothing of a fit"


def test_a_module_that_is_no_python_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("x = 1\ndef Net(:\n")
    with pytest.raises(UserInputError, match=r"net\.py:2: not Python"):
        plan._code_sha256("net", (str(tmp_path),))
