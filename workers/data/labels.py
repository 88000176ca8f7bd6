"""Find labels that probably mean something else: missing values, several labels in one, and spellings of one class."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from workers.errors import first_few

MISSING = frozenset({"nan", "none", "na", "n/a", "<na>", "null", "nil", "?"})  # casefolded
SEPARATORS = re.compile(r"[,;|/]")


def is_missing(label: str) -> bool:
    """Return whether a label is a usual mark for a missing value."""
    return label.strip().casefold() in MISSING


def find_spellings(classes: Sequence[str]) -> list[list[str]]:
    """Return groups of class names that differ only in case, spaces, underscores, hyphens or invisible characters."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        visible = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
        groups[re.sub(r"[\s_-]+", "", visible).casefold()].append(name)
    return [group for group in groups.values() if len(group) > 1]


def describe_spellings(classes: Sequence[str]) -> str:
    """Return a sentence on classes that differ only in their spelling, with invisible characters escaped; "" without any."""
    groups = [" and ".join(ascii(name) if not name.isprintable() else repr(name) for name in g) for g in find_spellings(classes)]
    return f"classes differ only in their spelling: {first_few(groups)}" if groups else ""


def note_of_spellings(classes: Sequence[str]) -> str:
    """Return the sentence as the end of a message on too few images, with a space before it; "" without such classes."""
    spellings = describe_spellings(classes)
    return f" Note that {spellings}." if spellings else ""


def warnings_of_labels(images: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence for each kind of doubtful class names.

    Args:
        images: Number of images of each class.
    """
    if spellings := describe_spellings(list(images)):
        yield f"{spellings}; each is trained as a class of its own"
    if missing := [name for name in images if is_missing(name)]:
        count = sum(images[name] for name in missing)
        yield (
            f"{count:,} images have the label {first_few(missing)}, which often stands for a missing label; "
            "`on_missing_label: drop` under `data:` leaves them out"
        )
    if several := [name for name in images if _holds_several(name, images)]:
        count = sum(images[name] for name in several)
        yield (
            f"{count:,} images have several labels in one, such as {several[0]!r}; Conclave trains one label for each image, so "
            "each combination is a class of its own"
        )


def _holds_several(name: str, classes: Mapping[str, int]) -> bool:
    """Return whether a class name lists several labels: separated by signs, or by spaces if one of them is a class too."""
    pieces = [piece.strip() for piece in SEPARATORS.split(name)]
    if len(pieces) > 1 and all(pieces):
        return True
    return len(words := name.split()) > 1 and any(word in classes for word in words)
