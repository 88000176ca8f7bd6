"""Read a tensor folder's manifest: its record and the checksums of its files. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from workers.errors import CorruptFileError
from workers.storage.state_file import parse_record

MANIFEST = "manifest.json"
FILES = "files"  # key of the checksums of the files
Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        path: The manifest's file.
        files: SHA-256 of each file of the folder, by its name.
        values: All values in the manifest, including its own checksum.
    """

    path: Path
    files: Mapping[str, str]
    values: Mapping[str, object]

    def parse(self, kind: type[Record]) -> Record:
        """Return the record that the manifest holds. Raises CorruptFileError if it holds another kind, or is damaged."""
        return parse_record(self.path, self.values, kind, "")


class _Files(BaseModel):
    files: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder.

    Raises:
        FileNotFoundError: If the folder has no manifest.
        CorruptFileError: If the manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise CorruptFileError(f"{path}: damaged.") from None
    return Manifest(path, parse_record(path, values, _Files, "").files, values)
