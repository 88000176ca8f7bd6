"""Summarize a packed and split data set: its contents, the origin of each part, and possible problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.config.specs import DataSpec
from workers.data.duplicates import DuplicatePairs, find_equal, find_similar
from workers.data.packing import OnProgress, pack_data
from workers.data.splits import Split, get_split
from workers.data.store import Rows, Store
from workers.data.summary import DataSummary
from workers.errors import UserInputError

PARTS = ("fit", "fuse", "test")
MOST_SHOWN = 3
FEW_TESTED = 5  # test rows of a class below which its accuracy means little
IMBALANCED = 10.0  # size ratio of the largest to the smallest class


def summarize_data(store: Store, spec: DataSpec, split: Split) -> DataSummary:
    """Return the summary of a data set.

    Args:
        store: The packed data.
        spec: The data set.
        split: Its split.
    """
    parts = {part.name: getattr(split, part.name) for part in fields(Split) if part.name in PARTS}
    labels = np.asarray(store.labels)
    counts = {part: np.bincount(labels[rows], minlength=len(store.classes)) for part, rows in parts.items()}
    classes = {name: {part: int(counts[part][i]) for part in PARTS} for i, name in enumerate(store.classes)}
    return DataSummary(
        rows={part: len(rows) for part, rows in parts.items()},
        classes=classes,
        origins=_origins(store, spec),
        image_sizes=store.record.image_sizes,
        size=store.size,
        notes=store.notes(),
        warnings=[*_warnings_of_duplicates(store, parts), *_warnings_of_counts(classes, spec)],
    )


def pack_and_check(
    spec: DataSpec,
    seed: int,
    home: Path,
    on_progress: OnProgress = lambda rows, expected: None,
    say: Callable[[str], None] = lambda text: None,
) -> Store:
    """Pack a data set unless it is packed already, and check its split and its duplicates.

    Args:
        spec: The data set.
        seed: The team's seed, which determines the split.
        home: The home.
        on_progress: Called with the number of rows decoded so far.
        say: Called with a line of text if damaged data is packed again.

    Raises:
        UserInputError: If the data cannot be used. Nothing is left on the disk.
    """

    def check(packed: Store) -> None:
        refuse_duplicates(packed, spec, get_split(packed, spec, seed))

    return pack_data(spec, home, on_progress, check, say)


def inspect_data(
    spec: DataSpec, seed: int, home: Path, on_progress: OnProgress = lambda rows, expected: None
) -> tuple[Store, DataSummary]:
    """Pack a data set as `pack_and_check` does, and summarize it."""
    store = pack_and_check(spec, seed, home, on_progress)
    return store, summarize_data(store, spec, get_split(store, spec, seed))


def refuse_duplicates(store: Store, spec: DataSpec, split: Split) -> None:
    """Raise UserInputError if data.duplicates is "error" and equal images are in different parts or classes."""
    if spec.duplicates != "error":
        return
    for warning in _warnings_of_duplicates(store, {"fit": split.fit, "fuse": split.fuse, "test": split.test}, similar=False):
        raise UserInputError(f"data.duplicates: {warning}. Remove them, or set data.duplicates to drop or warn.")


def _origins(store: Store, spec: DataSpec) -> dict[str, str]:
    """Return the origin of the *fit*, *fuse* and *test* rows, in words."""
    given = store.record.origins
    train = given.get("train", "the images")
    has_own = {"fuse": bool(store.validation.any()), "test": bool(store.tested.any())}
    own = {"fuse": given.get("val", "the data set's own part"), "test": given.get("test", "the data set's own part")}
    kept = ", with groups kept together" if store.groups is not None else ""
    drawn = {"fuse": f"{spec.fuse_fraction:.0%} of the training rows", "test": f"{spec.test_fraction:.0%} of {train}"}
    fit = train if all(has_own.values()) else f"the rest of {train}"
    origins = {part: own[part] if has_own[part] else f"{drawn[part]}, drawn by the team's seed{kept}" for part in own}
    return {"fit": fit, **origins}


def _warnings_of_duplicates(store: Store, parts: Mapping[str, Rows], similar: bool = True) -> Iterator[str]:
    """Yield a sentence for each problem with duplicate images."""
    part_of = np.full(len(store.labels), "", dtype="<U4")
    for name, rows in parts.items():
        part_of[rows] = name
    equal = find_equal(store.digests)
    yield from _DuplicateReport(store, equal, part_of, "equal").sentences()
    if similar:
        yield from _DuplicateReport(
            store, find_similar(store.perceptual_hashes, store.images, equal), part_of, "nearly equal"
        ).sentences()


@dataclass(frozen=True)
class _DuplicateReport:
    """Describes the problems with duplicate images.

    Attributes:
        store: The packed data.
        twins: The pairs.
        part_of: (N,) name of each row's part.
        how: "equal" or "nearly equal".
    """

    store: Store
    twins: DuplicatePairs
    part_of: NDArray[np.str_]
    how: str

    def sentences(self) -> Iterator[str]:
        """Yield a sentence for each problem."""
        first, second = self.twins.first, self.twins.second
        for held in ("test", "fuse"):
            parts = self.part_of[first], self.part_of[second]
            crossing = (parts[0] != parts[1]) & ((parts[0] == held) | (parts[1] == held))
            rows = self._rows(crossing)
            count, total = int((self.part_of[rows] == held).sum()), int((self.part_of == held).sum())
            if count:
                yield (
                    f"{count:,} of {total:,} {held} images {_are(count)} {self.how} to an image of another part, so scores on "
                    f"them are too high: {self._examples(crossing)}"
                )
        labels = np.asarray(self.store.labels)
        differing = labels[first] != labels[second]
        if self.how == "equal" and differing.any():
            count = len(self._rows(differing))
            yield f"{count:,} images are equal but have different labels: {self._examples(differing)}"

    def _rows(self, chosen: NDArray[np.bool_]) -> Rows:
        return np.unique(np.concatenate([self.twins.first[chosen], self.twins.second[chosen]]))

    def _examples(self, chosen: NDArray[np.bool_]) -> str:
        pairs = list(zip(self.twins.first[chosen].tolist(), self.twins.second[chosen].tolist(), strict=True))
        shown = ", ".join(f"{self.store.ids[a]} and {self.store.ids[b]}" for a, b in pairs[:MOST_SHOWN])
        return shown + (f" and {len(pairs) - MOST_SHOWN:,} more" if len(pairs) > MOST_SHOWN else "")


def _warnings_of_counts(classes: Mapping[str, Mapping[str, int]], spec: DataSpec) -> Iterator[str]:
    totals = {name: sum(counts.values()) for name, counts in classes.items()}
    largest, smallest = max(totals, key=lambda n: totals[n]), min(totals, key=lambda n: totals[n])
    if totals[largest] >= IMBALANCED * totals[smallest]:
        share = totals[largest] / sum(totals.values())
        yield (
            f"{largest} has {totals[largest]:,} images and {smallest} has {totals[smallest]:,}. Always predicting {largest} "
            f"would be right for {share:.1%} of the images, so look at each class's accuracy too"
        )
    if few := [f"{name} ({counts['fit']})" for name, counts in classes.items() if counts["fit"] < spec.folds]:
        yield f"fewer fit images than the {spec.folds} folds in {_listed(few)}: some folds hold no image of the class"
    if few := [f"{name} ({counts['test']})" for name, counts in classes.items() if counts["test"] < FEW_TESTED]:
        yield f"fewer than {FEW_TESTED} test images in {_listed(few)}: the accuracy of these classes means little"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:MOST_SHOWN]) + (f" and {len(texts) - MOST_SHOWN:,} more classes" if len(texts) > MOST_SHOWN else "")
