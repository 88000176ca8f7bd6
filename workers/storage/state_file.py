"""Read and write state files: records in JSON, with a checksum of themselves. A file of an earlier version has none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from workers.errors import CorruptFileError
from workers.storage.files import write_json

CHECKSUM = "checksum"
Record = TypeVar("Record", bound=BaseModel)


def write_state(path: Path, record: BaseModel) -> None:
    """Write a record, whole or not at all, with its checksum. Raises OSError."""
    values = record.model_dump(mode="json")
    write_json(path, {**values, CHECKSUM: _checksum(values)})


def read_state(path: Path, kind: type[Record], advice: str) -> Record | None:
    """Return the record in a file, or None where there is no file.

    Args:
        path: The file.
        kind: What it holds.
        advice: What to do where it is damaged, in a sentence.

    Raises:
        CorruptFileError: If it is damaged, holds something else, or is a folder.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise CorruptFileError(f"{path}: there is a folder in the place of this file. Move it elsewhere.") from None
    except ValueError:
        raise CorruptFileError(f"{path}: it can't be read. {advice}") from None
    if not isinstance(values, dict):
        raise CorruptFileError(f"{path}: it is not a JSON object. {advice}")
    checksum = values.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(values):
        raise CorruptFileError(f"{path}: it was changed, or damaged: its checksum does not fit. {advice}")
    try:
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "its start"
        raise CorruptFileError(f"{path}: it can't be read (at {place}). {advice}") from None


def _checksum(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
