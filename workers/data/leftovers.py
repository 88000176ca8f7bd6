"""Recognize hidden files and leftovers of systems and editors.

Folders, archives, sweeps and predictions share this rule.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

NAMES = frozenset(
    {
        "__macosx",  # metadata that macOS adds to a ZIP archive for each file
        "@eadir",  # thumbnails of a Synology NAS
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

HIDDEN = "that are hidden, or left by an editor or a system"


def is_leftover(name: str) -> bool:
    """Return whether a file, or a folder above it, is hidden or a leftover.

    Args:
        name: The file's name within the data, with forward slashes.
    """
    parts = name.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part.casefold() in NAMES for part in parts)


@dataclass
class SkippedFiles:
    """Counts skipped files by kind, with an example of each.

    Attributes:
        counts: Number of files by kind, in words.
        examples: A file of each kind.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Count a file."""
        suffix = PurePosixPath(name).suffix.lower()
        kind = HIDDEN if is_leftover(name) else f"with the extension {suffix}" if suffix else "with no extension"
        self.counts[kind] += 1
        self.examples.setdefault(kind, name)

    def notes(self) -> list[str]:
        """Return a sentence for each kind, the most frequent first."""
        return [
            f"skipped {'1 file' if count == 1 else f'{count:,} files'} {kind}, for example {self.examples[kind]}"
            for kind, count in self.counts.most_common()
        ]
