"""Format predictions as rows of a CSV file, all classes or the best; and score them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

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
    labels: Mapping[str, str] = field(default_factory=dict)
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
        if len(truths) == 1 and not self.labels:
            return []  # a single folder may bear a class's name by chance
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
