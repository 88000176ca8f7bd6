"""What `conclave predict` writes: rows, the best classes, a competition's file, and scores where labels are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from fusion.serving.entries import list_entries, read_list
from fusion.serving.matching import labels_of_table
from fusion.serving.outputs import LabelledScores, Prediction, all_classes, best_classes
from fusion.serving.submission import Submission
from tests.inputs import write_table
from workers.data.tables import read_table
from workers.errors import UserInputError

CLASSES = ("ant", "bee", "cow")


def guess(name: str, *probabilities: float) -> Prediction:
    return Prediction(f"photos/{name}", name, np.array(probabilities, dtype=np.float32))


GUESSES = [guess("x/1.png", 0.5, 0.25, 0.25), guess("y/2.jpg", 0.125, 0.75, 0.125), guess("y/3.jpg", 0.25, 0.125, 0.625)]


def test_a_row_for_each_class_and_the_best_classes() -> None:
    rows = list(all_classes(GUESSES, CLASSES))
    assert rows[:3] == [["file", "class", "probability"], ["photos/x/1.png", "ant", "0.5"], ["photos/x/1.png", "bee", "0.25"]]
    assert len(rows) == 10
    assert list(best_classes(GUESSES, CLASSES, 2))[::2] == [
        ["file", "class_1", "probability_1", "class_2", "probability_2"],
        ["photos/y/2.jpg", "bee", "0.75", "ant", "0.125"],
    ]
    assert len(next(best_classes((), CLASSES, 99))) == 7, "no more classes than there are"


NAMES = [one.name for one in GUESSES]


def filled(
    tmp_path: Path, lines: Sequence[str], positive: str | None = None, guesses: Sequence[Prediction] = GUESSES
) -> list[list[str]]:
    """The rows of a submission, and a row of the notes."""
    notes: list[str] = []
    sample = Submission.read(write_table(tmp_path / "sample.csv", lines), CLASSES, positive)
    rows = [list(row) for row in sample.rows(NAMES, iter(guesses), notes.append)]
    return [*rows, *([notes] if notes else [])]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["id,label", "2,?", "1,?", "3,?"], [["2", "bee"], ["1", "ant"], ["3", "cow"]]),
        (["id,label", "2,ant", "1,bee"], [["2", "bee"], ["1", "ant"]]),
        (
            ["image,cow,ant,bee", "y/3.jpg,0,0,0", "1.png,0,0,0"],
            [["y/3.jpg", "0.625", "0.25", "0.125"], ["1.png", "0.25", "0.5", "0.25"]],
        ),
        (["label,image", "ant,2.jpg", "ant,3.jpg"], [["bee", "2.jpg"], ["cow", "3.jpg"]]),
        (["id,labels", "3,ant bee", "2,ant bee"], [["3", "cow ant"], ["2", "bee ant"]]),
        (["id,label", "test/2.jpg,ant"], [["test/2.jpg", "bee"]]),
    ],
)
def test_a_competitions_file_is_filled_in_its_own_order(lines: Sequence[str], expected: list[list[str]], tmp_path: Path) -> None:
    assert filled(tmp_path, lines) == [lines[0].split(","), *expected]


def test_numbers_in_a_sample_take_the_probability_of_the_class_that_is_named(tmp_path: Path) -> None:
    lines = ["id,label", "1,0.5", "2,0.5"]
    with pytest.raises(UserInputError, match="label holds numbers, so it takes a probability"):
        filled(tmp_path, lines)
    with pytest.raises(UserInputError, match="--positive dog: no class of the model"):
        filled(tmp_path, lines, "dog")
    assert filled(tmp_path, lines, "bee") == [["id", "label"], ["1", "0.25"], ["2", "0.75"]]


def test_the_delimiter_of_a_sample_stays(tmp_path: Path) -> None:
    sample = Submission.read(write_table(tmp_path / "sample.csv", ["id;label", "1;ant"]), CLASSES, None)
    assert sample.delimiter == ";"


def test_an_image_that_cannot_be_read_gets_uniform_probabilities_with_a_line(tmp_path: Path) -> None:
    rows = filled(tmp_path, ["id,ant,bee,cow", "1,0,0,0", "3,0,0,0"], guesses=GUESSES[1:])
    assert rows[1] == ["1", "0.3333333", "0.3333333", "0.3333333"]
    assert rows[-1] == ["1: uniform probabilities, because x/1.png can't be read"]


def test_ids_are_compared_before_anything_is_predicted(tmp_path: Path) -> None:
    def predictions() -> Iterator[Prediction]:
        pytest.fail("an image was predicted")
        yield

    sample = Submission.read(write_table(tmp_path / "sample.csv", ["id,label", "00001,ant"]), CLASSES, None)
    with pytest.raises(UserInputError, match="1 of 1 ids have no image, such as 00001"):
        sample.rows(NAMES, predictions(), print)
    twice = Submission.read(write_table(tmp_path / "sample.csv", ["id,label", "1,ant"]), CLASSES, None)
    with pytest.raises(UserInputError, match="the id 1 fits x/1"):
        twice.rows([*NAMES, "y/1.jpg"], predictions(), print)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["id,ant,bee", "2,0,0"], "no column for cow, which the model knows"),
        (["id,ant,bee,cow,Usage", "2,0,0,0,Public"], "the column Usage is no class of the model"),
        (["id,Ant,Bee,Cow", "2,0,0,0"], "Ant is spelled ant in the model"),
        (["id,x,y", "2,0,0"], "the columns x, y are no classes of the model"),
        (["id,label", "2,wasp"], "'wasp' in the column label is no class of the model"),
        (["id,class,probability", "1,ant,0", "1,bee,0"], "appears twice"),
        (["id"], "an id and a value in each row"),
    ],
)
def test_a_competitions_file_that_can_not_be_filled_is_refused(lines: Sequence[str], why: str, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=why):
        filled(tmp_path, lines)


@pytest.mark.parametrize(
    "lines",
    [
        ["path,label", "x/1.png,ant", "y/2.jpg,bee"],
        ["id,breed", "1,ant", "2,bee"],
        ["file,kind,source", "1.png,ant,web", "2.jpg,bee,lab"],
        ["path,label", "new/1.png,ant", "new/2.jpg,bee"],
        ["id,label", "1,ant", "2,bee", "99,cow"],
    ],
)
def test_labels_of_a_table_are_joined_by_what_tells_images_apart(lines: Sequence[str], tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path / "truth.csv", lines))
    assert labels_of_table(table, CLASSES, NAMES, "--labels") == {"x/1.png": "ant", "y/2.jpg": "bee"}


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["path,label", "1.png,Ant"], "'Ant' in the column label is no class of the model, where it is spelled 'ant'"),
        (["path,a,b", "1.png,ant,ant", "2.jpg,bee,bee"], "Rename the column of the labels"),
        (["a,label", "x,ant", "x,bee"], "Rename the column of the paths"),
        (["path,label", "7.png,ant"], "1 of 1 ids have no image"),
    ],
)
def test_a_table_of_labels_that_does_not_fit_says_which_column(lines: Sequence[str], why: str, tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path / "truth.csv", lines))
    with pytest.raises(UserInputError, match=why):
        labels_of_table(table, CLASSES, NAMES, "--labels")


def test_files_are_told_apart_by_their_names_and_those_without_an_extension_by_their_content(tmp_path: Path) -> None:
    folder, others = tmp_path / "mixed", list[str]()
    folder.mkdir()
    for name in ("1.jpg", "2", "labels.csv", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    with ExitStack() as open_files:
        names = [entry.name for entry in list_entries([folder], open_files, others.append)]
    assert names == ["1.jpg", "2"]
    assert others == [f"{folder / 'labels.csv'}: not an image by its name"]


def test_a_list_names_images_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b.jpg\n\na.jpg\n")
    assert read_list(tmp_path / "list.txt") == [tmp_path / "b.jpg", tmp_path / "a.jpg"]
    assert read_list(write_table(tmp_path / "list.csv", ["label,path", "x,b.jpg", "y,a.jpg"])) == [
        tmp_path / "b.jpg",
        tmp_path / "a.jpg",
    ]
    with pytest.raises(UserInputError, match="a column `path` is needed"):
        read_list(write_table(tmp_path / "list.csv", ["a,b", "x,y"]))
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserInputError, match="it names no file"):
        read_list(tmp_path / "list.txt")


def test_a_single_folder_with_the_name_of_a_class_scores_nothing() -> None:
    scores = LabelledScores(CLASSES)
    list(scores.follow([guess("ant/1.png", 0.5, 0.3, 0.2), guess("ant/2.png", 0.1, 0.8, 0.1)]))
    assert scores.lines() == []


def test_folders_with_names_of_classes_score_the_predictions() -> None:
    named = [
        guess("test/ant/1.png", 0.5, 0.3, 0.2),
        guess("test/ant/2.png", 0.1, 0.8, 0.1),
        guess("test/cow/3.png", 0.1, 0.1, 0.8),
    ]
    scores = LabelledScores(CLASSES)
    assert list(scores.follow(named)) == named
    accuracy, _, *matrix = scores.lines()
    assert accuracy == "accuracy 66.67% of 3 images with a label, balanced accuracy 75.00%"
    assert [line.split() for line in matrix] == [["ant", "1", "1", "0"], ["cow", "0", "0", "1"]]
    assert list(scores.follow([guess("test/other/4.png", 1, 0, 0)]))
    assert scores.lines() == [], "not every image has a label"


def test_a_table_scores_those_that_it_names() -> None:
    scores = LabelledScores(CLASSES, {"x/1.png": "ant", "y/2.jpg": "cow"})
    list(scores.follow(GUESSES))
    assert scores.lines()[:2] == [
        "accuracy 50.00% of 2 images with a label, balanced accuracy 50.00%",
        "images without a label in the table: 1",
    ]
