"""Fill in a competition's sample submission: its ids in order, with probabilities or labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion.serving.matching import column_of_ids, match_ids
from fusion.serving.outputs import Prediction
from workers.data.tables import read_table
from workers.errors import UserInputError, first_few


@dataclass(frozen=True)
class Submission:
    """A sample submission.

    Attributes:
        what: Its option and path, for messages.
        header: The names of its columns.
        delimiter: The delimiter of its columns.
        ids: Its ids, in order.
        id_column: Position of the column of ids.
        columns: For each other column, the position of the class whose probability it takes; None for labels.
        labels: Number of labels in a cell, most probable first.
        classes: The model's classes.
    """

    what: str
    header: list[str]
    delimiter: str
    ids: list[str]
    id_column: int
    columns: list[int | None]
    labels: int
    classes: Sequence[str]

    @classmethod
    def read(cls, sample: Path, classes: Sequence[str], positive: str | None) -> Submission:
        """Read a sample submission.

        Args:
            sample: The CSV file.
            classes: The model's classes, in the order of the probabilities.
            positive: The class whose probability a single column of numbers takes.

        Raises:
            UserInputError: If the columns or the values do not fit the model's classes.
        """
        what, table = f"--submission {sample}", read_table(sample)
        if len(table.header) < 2 or not table.rows:
            raise UserInputError(f"{what}: expected a header row, and an id and a value in each row.")
        id_name = column_of_ids(table, classes)
        if id_name is None:
            repeated = Counter(row[table.header[0]] for _, row in table.rows).most_common(1)[0][0]
            raise UserInputError(
                f"{what}: the id {repeated} appears twice. Rows of one image and one class each are not supported."
            )
        others = [name for name in table.header if name != id_name]
        values = [row[others[0]] for _, row in table.rows]
        columns, labels = _columns(what, others, values, list(classes), positive)
        ids = [row[id_name] for _, row in table.rows]
        return cls(what, table.header, table.delimiter, ids, table.header.index(id_name), columns, labels, classes)

    def rows(
        self, names: Sequence[str], predictions: Iterable[Prediction], note: Callable[[str], None]
    ) -> Iterator[Sequence[str]]:
        """Compare the ids with the images, and then yield the header row and the rows of the submission.

        Args:
            names: The images' names, before any is predicted.
            predictions: The predictions. An image that can't be read has none: it gets uniform probabilities.
            note: Called with a sentence for each such image.

        Raises:
            UserInputError: If an id matches no image or several images.
        """
        images = match_ids(self.ids, names, self.what)
        return self._filled(images, predictions, note)

    def _filled(
        self, images: dict[str, str], predictions: Iterable[Prediction], note: Callable[[str], None]
    ) -> Iterator[Sequence[str]]:
        probabilities = {one.name: one.probabilities for one in predictions}
        uniform = np.full(len(self.classes), 1 / len(self.classes), np.float32)
        yield self.header
        for one in self.ids:
            of_image = probabilities.get(images[one])
            if of_image is None:
                note(f"{one}: uniform probabilities, because {images[one]} can't be read")
                of_image = uniform
            best = [self.classes[i] for i in np.argsort(-of_image, kind="stable")[: self.labels]]
            cells = [" ".join(best) if column is None else f"{float(of_image[column]):.7g}" for column in self.columns]
            cells.insert(self.id_column, one)
            yield cells


def _columns(
    what: str, names: list[str], values: list[str], classes: list[str], positive: str | None
) -> tuple[list[int | None], int]:
    """Return the class of each column, and the number of labels in a cell."""
    if any(name in classes for name in names):
        if unknown := [name for name in names if name not in classes]:
            raise UserInputError(f"{what}: the column {unknown[0]} is no class of the model. Remove it from the sample.")
        if lacking := [name for name in classes if name not in names]:
            raise UserInputError(
                f"{what}: it has no column for {first_few(lacking)}, which the model knows: the rows would not sum to 1."
            )
        return [classes.index(name) for name in names], 1
    if len(names) > 1:
        twin = next((name for name in classes if name.casefold() == names[0].casefold()), None)
        hint = f"{names[0]} is spelled {twin} in the model" if twin else f"the model knows {first_few(classes)}"
        raise UserInputError(f"{what}: the columns {first_few(names)} are no classes of the model; {hint}. Rename them.")
    given = [value for value in values if value not in ("", "?")]
    if all(value in classes for value in given):
        return [None], 1
    if all(_is_fraction(value) for value in given):
        if positive is None:
            raise UserInputError(
                f"{what}: {names[0]} holds numbers, so it takes a probability. Name its class by --positive CLASS."
            )
        if positive not in classes:
            raise UserInputError(f"--positive {positive}: no class of the model, which knows {first_few(classes)}.")
        return [classes.index(positive)], 1
    cells = [value.split() for value in given]
    if all(word in classes for cell in cells for word in cell):
        return [None], max(map(len, cells))
    wrong = next(value for value in given if value not in classes)
    raise UserInputError(
        f"{what}: {wrong!r} in the column {names[0]} is no class of the model, which knows {first_few(classes)}."
    )


def _is_fraction(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False
