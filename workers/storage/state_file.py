"""Read and write JSON records sealed with a checksum. Used by state files, manifests and outboxes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from workers.errors import CorruptFileError
from workers.storage.files import write_json

CHECKSUM = "checksum"
Record = TypeVar("Record", bound=BaseModel)


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values with their checksum, which ignores formatting."""
    plain = json.loads(json.dumps(values, allow_nan=False))
    return {**plain, CHECKSUM: _checksum(plain)}


def unseal(values: object) -> dict[str, Any] | None:
    """Return sealed values without their checksum; None if the checksum does not match."""
    if not isinstance(values, dict):
        return None
    plain = {key: value for key, value in values.items() if key != CHECKSUM}
    return plain if values.get(CHECKSUM) == _checksum(plain) else None


def write_state(path: Path, record: BaseModel, point: str = "file") -> None:
    """Write a record, whole or not at all, with its checksum. Raises OSError.

    Args:
        path: The file.
        record: The record.
        point: Name of the fault points that tests inject faults at.
    """
    write_json(path, seal(record.model_dump(mode="json")), point)


def read_state(path: Path, kind: type[Record], advice: str) -> Record | None:
    """Return the record in a file as `read_record` does, or None if there is no file."""
    try:
        return read_record(path, kind, advice)
    except FileNotFoundError:
        return None


def read_record(path: Path, kind: type[Record], advice: str) -> Record:
    """Return the record in a file, verified by its checksum.

    Args:
        path: The file.
        kind: The kind of record.
        advice: What to do about a damaged file, in a sentence.

    Raises:
        FileNotFoundError: If there is no file.
        CorruptFileError: If it is damaged, holds something else, is a folder, or was written before version 0.3.0.
    """
    try:
        values = json.loads(path.read_bytes())
    except IsADirectoryError:
        raise CorruptFileError(f"{path}: there is a folder in the place of this file. Move it elsewhere.") from None
    except ValueError:
        raise CorruptFileError(f"{path}: it can't be read. {advice}") from None
    version, known = values.get("version") if isinstance(values, dict) else None, kind.model_fields.get("version")
    if known and isinstance(version, int) and version < known.default:
        raise CorruptFileError(
            f"{path}: written by a version of Conclave before 0.3.0, which this version does not open. "
            "Give another --home; or open it with the version that wrote it."
        )
    if (plain := unseal(values)) is None:
        raise CorruptFileError(f"{path}: it was changed, or damaged: its checksum does not fit. {advice}")
    try:
        return kind.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "its start"
        raise CorruptFileError(f"{path}: it can't be read (at {place}). {advice}") from None


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
