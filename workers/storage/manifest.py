"""Read a tensor folder's manifest: its record and the checksums of its files. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from workers.storage.state_file import read_record

MANIFEST = "manifest.json"


class Manifest(BaseModel):
    """Base class of the records of tensor folders.

    Attributes:
        files: SHA-256 of each file of the folder, by its name.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    files: dict[str, str] = Field(default_factory=dict)


Record = TypeVar("Record", bound=Manifest)


def read_manifest(folder: Path, kind: type[Record], advice: str = "") -> Record:
    """Return the record of a folder.

    Raises:
        FileNotFoundError: If the folder has no manifest.
        CorruptFileError: If the manifest is damaged, or of another kind. The message ends with the advice.
    """
    return read_record(folder / MANIFEST, kind, advice)
