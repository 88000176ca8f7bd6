"""Tell data from what systems and editors leave beside it. This one rule holds for folders, archives, sweeps and predictions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

NAMES = frozenset(
    {
        "__macosx",  # a shadow of each file, which macOS adds to a ZIP archive
        "@eadir",  # thumbnails of a Synology
        "#recycle",
        "$recycle.bin",
        "lost+found",
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "__pycache__",
    }
)


HIDDEN = "hidden"


def is_leftover(name: str) -> bool:
    """Return whether a file is hidden or a leftover, or lies in a folder that is.

    Args:
        name: The file's name within the data, with forward slashes.
    """
    parts = name.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part.casefold() in NAMES for part in parts)


@dataclass
class SkippedFiles:
    """Counts the files that are passed over, by what they are, with an example of each kind.

    Attributes:
        counts: Number of files by kind: an extension, or HIDDEN.
        examples: A file of each kind.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Count a file."""
        kind = HIDDEN if is_leftover(name) else PurePosixPath(name).suffix.lower() or "no extension"
        self.counts[kind] += 1
        self.examples.setdefault(kind, name)

    @property
    def total(self) -> int:
        """Number of all files."""
        return self.counts.total()

    def notes(self) -> list[str]:
        """Return a sentence for each kind, the most frequent first."""
        notes = []
        for kind, count in self.counts.most_common():
            files = "1 file" if count == 1 else f"{count:,} files"
            what = "that are hidden, or left by an editor or a system" if kind == HIDDEN else f"with {_named(kind)}"
            notes.append(f"skipped {files} {what}, for example {self.examples[kind]}")
        return notes


def _named(kind: str) -> str:
    return kind if kind == "no extension" else f"the extension {kind}"
