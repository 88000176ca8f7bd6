"""Read and seal the manifest of a folder of tensors: the record of what the folder holds, with its own checksum. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from workers.errors import CorruptFileError

MANIFEST = "manifest.json"
Record = TypeVar("Record", bound=BaseModel)


def seal_manifest(manifest: Mapping[str, object]) -> bytes:
    """Return the content of a manifest file: the manifest and its checksum, as JSON."""
    return json.dumps({**manifest, "sha256": _sha256(manifest)}, indent=1, allow_nan=False).encode()


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
        path: The manifest's file.
        files: Checksum of each file of the folder, by its name.
        values: All that the manifest says, the checksums of the files included.
    """

    path: Path
    files: Mapping[str, str]
    values: Mapping[str, object]

    def parse(self, kind: type[Record]) -> Record:
        """Return the record that the manifest holds. Raises CorruptFileError where it holds none of this kind."""
        try:
            return kind.model_validate_json(json.dumps(self.values))
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise CorruptFileError(f"{self.path}: it is not complete, or of another kind (at {place}).") from None


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder, without its checksum.

    Raises:
        FileNotFoundError: If there is none.
        CorruptFileError: If it is not what was written.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("files"), dict):
        raise CorruptFileError(f"{path}: damaged.")
    if values.pop("sha256", None) != _sha256(values):
        raise CorruptFileError(f"{path}: damaged.")
    return Manifest(path, values["files"], values)


def _sha256(manifest: Mapping[str, object]) -> str:
    """Return the digest of what a manifest says, not of how it is written."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(manifest)), sort_keys=True).encode()).hexdigest()
