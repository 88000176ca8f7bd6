"""Format predictions as rows of a CSV file: all classes, the best classes, or a submission; and score them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from workers.data.tables import read_table
from workers.errors import UserInputError

MOST_SHOWN = 3
WIDEST = 20  # classes: the largest confusion matrix to print


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image.

    Attributes:
        file: The file's name, as given by the user.
        name: Its name within the given folder or archive.
        probabilities: (C,) float32.
    """

    file: str
    name: str
    probabilities: NDArray[np.float32]


def all_classes(predictions: Iterable[Prediction], classes: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield a header row, and a row for each class of each image: file, class, probability."""
    yield ["file", "class", "probability"]
    for one in predictions:
        for name, probability in zip(classes, one.probabilities, strict=True):
            yield [one.file, name, f"{float(probability):.7g}"]


def best_classes(predictions: Iterable[Prediction], classes: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    """Yield a header row, and a row for each image with its most probable classes: file, class_1, probability_1 and so on."""
    count = min(count, len(classes))
    yield ["file", *(f"{what}_{rank}" for rank in range(1, count + 1) for what in ("class", "probability"))]
    for one in predictions:
        best = np.argsort(-one.probabilities, kind="stable")[:count]
        yield [one.file, *(text for i in best for text in (classes[i], f"{float(one.probabilities[i]):.7g}"))]


def submission(predictions: Iterable[Prediction], classes: Sequence[str], sample: Path) -> Iterator[Sequence[str]]:
    """Yield the rows of a competition's submission: the sample file with its ids in order and its columns filled in.

    A single column after the id gets the most probable class; columns named after classes get their probabilities.

    Args:
        predictions: The predictions.
        classes: The class names, in the order of the probabilities.
        sample: The sample file.

    Raises:
        UserInputError: If the sample file has an unknown format, or an id matches no image or several images.
    """
    header, ids = _read_sample(sample)
    columns = _columns(sample, header, classes)
    levels: list[dict[str, list[Prediction]]] = [{}, {}, {}, {}]
    for one in predictions:
        path = PurePosixPath(one.name)
        for level, key in zip(levels, (one.name, path.with_suffix("").as_posix(), path.name, path.stem), strict=True):
            level.setdefault(key, []).append(one)
    found = {key: next((level[key] for level in levels if key in level), []) for key in ids}
    if missing := [key for key in ids if not found[key]]:
        shown = ", ".join(missing[:MOST_SHOWN])
        raise UserInputError(f"--submission {sample}: {len(missing)} of {len(ids)} ids have no image, such as {shown}.")
    for key, fitting in found.items():
        if len(fitting) > 1:
            raise UserInputError(f"--submission {sample}: the id {key} fits {fitting[0].file} and {fitting[1].file}.")
    yield header
    for key in ids:
        values = found[key][0].probabilities
        best = classes[int(values.argmax())]
        yield [key, *(best if i is None else f"{float(values[i]):.7g}" for i in columns)]


def _read_sample(sample: Path) -> tuple[list[str], list[str]]:
    """Return the header row and the ids. Raises UserInputError."""
    table = read_table(sample)
    ids = [next(iter(values.values())) for _, values in table.rows]
    if len(table.header) < 2 or not ids:
        raise UserInputError(f"--submission {sample}: expected a header row, and an id and a class in each row.")
    if len(set(ids)) < len(ids):
        raise UserInputError(f"--submission {sample}: the id {Counter(ids).most_common(1)[0][0]} appears twice.")
    return table.header, ids


def _columns(sample: Path, header: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """Return the class index of each column after the id; None for a column of most probable classes."""
    names = [name.strip() for name in header[1:]]
    if set(names) <= set(classes):
        return [list(classes).index(name) for name in names]
    if len(names) == 1:
        return [None]
    unknown = [name for name in names if name not in classes]
    raise UserInputError(
        f"--submission {sample}: the columns {', '.join(unknown[:MOST_SHOWN])} are no classes of the model, which knows "
        f"{', '.join(classes[:MOST_SHOWN])} and so on."
    )


@dataclass
class LabelledScores:
    """Scores predictions of images with known labels.

    Attributes:
        classes: The class names, in the order of the probabilities.
        labels: Label of each image by its name; if empty, the image's folder named after a class.
        counts: Number of images by true class and predicted class.
        unknown: Number of images without a label.
    """

    classes: Sequence[str]
    labels: dict[str, str] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    unknown: int = 0

    def follow(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yield the predictions, and count them."""
        known = set(self.classes)
        for one in predictions:
            folders = [part for part in PurePosixPath(one.name).parts[:-1] if part in known]
            label = self.labels.get(one.name) if self.labels else folders[-1] if folders else None
            if label is None:
                self.unknown += 1
            else:
                self.counts[label, self.classes[int(one.probabilities.argmax())]] += 1
            yield one

    def lines(self) -> list[str]:
        """Return accuracy, balanced accuracy and confusion matrix as text; empty if folders leave images unlabelled."""
        total = self.counts.total()
        if not total and self.labels:
            return [f"none of the {self.unknown:,} images is in the table, which names {next(iter(self.labels))} for example"]
        if not total or (self.unknown and not self.labels):
            return []
        truths = [name for name in self.classes if any(truth == name for truth, _ in self.counts)]
        rows = {name: [self.counts[name, guess] for guess in self.classes] for name in truths}
        recall = {name: self.counts[name, name] / sum(row) for name, row in rows.items()}
        right = sum(self.counts[name, name] for name in truths)
        balanced = float(np.mean(list(recall.values())))
        lines = [f"accuracy {right / total:.2%} of {total:,} images with a label, balanced accuracy {balanced:.2%}"]
        if self.unknown:
            lines.append(f"images without a label in the table: {self.unknown:,}")
        if len(self.classes) > WIDEST:
            worst = sorted(recall, key=lambda name: recall[name])[:MOST_SHOWN]
            return [*lines, f"least often right: {', '.join(f'{name} {recall[name]:.1%}' for name in worst)}"]
        width = max(map(len, (*self.classes, "true\\pred")))
        lines.append(" ".join(text.rjust(width) for text in ("true\\pred", *self.classes)))
        lines += [" ".join(text.rjust(width) for text in (name, *map(str, row))) for name, row in rows.items()]
        return lines
