"""Summarize a packed and split data set: its contents, the origin of each part, and possible problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.config.specs import DataSpec
from workers.data.decoded_rows import OnProgress
from workers.data.duplicates import Pairs, find_equal, find_similar
from workers.data.labels import note_of_spellings, warnings_of_labels
from workers.data.packing import pack_data
from workers.data.splits import Split, get_split
from workers.data.store import Rows, Store
from workers.data.summary import DataSummary
from workers.errors import UserInputError, first_few

PARTS = ("fit", "fuse", "test")
FEW_TESTED = 5  # test rows of a class below which its accuracy means little
IMBALANCED = 10.0  # size ratio of the largest to the smallest class


def summarize_data(store: Store, spec: DataSpec, split: Split) -> DataSummary:
    """Return the summary of a data set.

    Args:
        store: The packed data.
        spec: The data set.
        split: Its split.
    """
    parts: dict[str, Rows] = {part: getattr(split, part) for part in PARTS}
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
        warnings=[
            *warnings_of_labels({name: sum(count.values()) for name, count in classes.items()}),
            *_warnings_of_duplicates(store, split),
            *_warnings_of_counts(classes, spec),
        ],
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
    return pack_data(spec, home, on_progress, lambda packed: check_packed(packed, spec, seed, home), say)


def check_packed(store: Store, spec: DataSpec, seed: int, home: Path) -> Split:
    """Return the split of a packed data set. Raises UserInputError if its rows cannot be split, or duplicates are refused."""
    try:
        split = get_split(store, spec, seed, home)
    except UserInputError as error:  # a class of too few images may be another one, misspelled
        raise UserInputError(f"{error}{note_of_spellings(store.classes)}") from None
    for warning in _warnings_of_duplicates(store, split, similar=False) if spec.duplicates == "error" else ():
        raise UserInputError(f"data.duplicates: {warning}. Remove them, or set data.duplicates to drop or warn.")
    return split


def inspect_data(
    spec: DataSpec, seed: int, home: Path, on_progress: OnProgress = lambda rows, expected: None
) -> tuple[Store, DataSummary]:
    """Pack a data set as `pack_and_check` does, and summarize it."""
    store = pack_and_check(spec, seed, home, on_progress)
    return store, summarize_data(store, spec, get_split(store, spec, seed, home))


def _origins(store: Store, spec: DataSpec) -> dict[str, str]:
    """Return the origin of the *fit*, *fuse* and *test* rows, in words."""
    given = store.record.origins
    train = given.get("train", "the images")
    parts = ("test",) if spec.is_out_of_fold else ("fuse", "test")
    has_own = {"fuse": bool(store.validation.any()), "test": bool(store.tested.any())}
    own = {"fuse": given.get("val", "the data set's own part"), "test": given.get("test", "the data set's own part")}
    kept = ", with groups kept together" if store.groups is not None else ""
    drawn = {"fuse": f"{spec.fuse_fraction:.0%} of the training rows", "test": f"{spec.test_fraction:.0%} of {train}"}
    fit = train if all(has_own[part] for part in parts) else f"the rest of {train}"
    if spec.split:
        origins = dict.fromkeys(parts, f"what {spec.split.name} says")
    else:
        origins = {part: own[part] if has_own[part] else f"{drawn[part]}, drawn by the team's seed{kept}" for part in parts}
    if spec.is_out_of_fold:
        val = f", with {given['val']}" if "val" in given else ""
        return {"fit": f"{fit}{val}; fusions are chosen on its out-of-fold predictions", **origins}
    return {"fit": fit, **origins}


def _warnings_of_duplicates(store: Store, split: Split, similar: bool = True) -> Iterator[str]:
    """Yield a sentence for each problem with duplicate images."""
    part_of = np.full(len(store.labels), "", dtype="<U4")
    for part in PARTS:
        part_of[getattr(split, part)] = part
    equal = find_equal(store.row_arrays["digests"])
    yield from _warnings_of_parts(store, equal, part_of, "equal")
    differing = equal[np.ptp(np.asarray(store.labels)[equal], axis=1) > 0]
    if len(differing):
        count = len(np.unique(differing))
        yield f"{count:,} images are equal but have different labels: {_examples(store, differing)}"
    if similar:
        nearly = find_similar(store.row_arrays["looks"], store.images, equal)
        yield from _warnings_of_parts(store, nearly, part_of, "nearly equal")


def _warnings_of_parts(store: Store, pairs: Pairs, part_of: NDArray[np.str_], how: str) -> Iterator[str]:
    """Yield a sentence for *test* and for *fuse*, if some of its images are equal to images of another part.

    Args:
        store: The packed data.
        pairs: The duplicates.
        part_of: (N,) name of each row's part.
        how: "equal" or "nearly equal".
    """
    parts = part_of[pairs]
    for held in ("test", "fuse"):
        crossing = pairs[(parts[:, 0] != parts[:, 1]) & (parts == held).any(axis=1)]
        count, total = int((part_of[np.unique(crossing)] == held).sum()), int((part_of == held).sum())
        if count:
            yield (
                f"{count:,} of {total:,} {held} images {'is' if count == 1 else 'are'} {how} to an image of another part, so "
                f"scores on them are too high: {_examples(store, crossing)}"
            )


def _examples(store: Store, pairs: Pairs) -> str:
    return first_few([f"{store.ids[a]} and {store.ids[b]}" for a, b in pairs.tolist()])


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
        yield f"fewer fit images than the {spec.folds} folds in {first_few(few)}: some folds hold no image of the class"
    if few := [f"{name} ({counts['test']})" for name, counts in classes.items() if counts["test"] < FEW_TESTED]:
        yield f"fewer than {FEW_TESTED} test images in {first_few(few)}: the accuracy of these classes means little"
