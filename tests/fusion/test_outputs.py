"""What `conclave predict` writes: rows, the best classes, a competition's file, and scores where labels are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fusion.serving.outputs import LabelledScores, Prediction, all_classes, best_classes, submission
from tests.inputs import write_table
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


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["id,label", "2,?", "1,?", "3,?"], [["2", "bee"], ["1", "ant"], ["3", "cow"]]),
        (["image,cow,ant", "y/3.jpg,0,0", "1.png,0,0"], [["y/3.jpg", "0.625", "0.25"], ["1.png", "0.25", "0.5"]]),
    ],
)
def test_a_competitions_file_is_filled_in_its_own_order(lines: Sequence[str], expected: list[list[str]], tmp_path: Path) -> None:
    sample = write_table(tmp_path / "sample.csv", lines)
    assert list(submission(iter(GUESSES), CLASSES, sample)) == [lines[0].split(","), *expected]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["id,label", "2,?", "7,?", "8,?"], "2 of 3 ids have no image, such as 7, 8"),
        (["id,cow,horse", "2,0,0"], "the columns horse are no classes of the model"),
        (["id"], "an id and a class in each row"),
    ],
)
def test_a_competitions_file_that_can_not_be_filled_is_refused(lines: Sequence[str], why: str, tmp_path: Path) -> None:
    sample = write_table(tmp_path / "sample.csv", lines)
    with pytest.raises(UserInputError, match=why):
        list(submission(iter(GUESSES), CLASSES, sample))


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
