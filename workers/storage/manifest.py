"""Read and seal the manifest of a folder of tensors: the record of what the folder holds, with its own checksum. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.errors import CorruptFileError
from workers.storage import legacy

MANIFEST = "manifest.json"


def seal_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Return the content of a manifest file: the manifest and its checksum, as JSON."""
    return json.dumps({**manifest, "sha256": _sha256(manifest)}, indent=1, allow_nan=False).encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder, without its checksum.

    Raises:
        FileNotFoundError: If there is none.
        CorruptFileError: If it is not what was written.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CorruptFileError(f"{path}: damaged.")
    if legacy.has_own_checksum(manifest) and manifest.pop("sha256") != _sha256(manifest):
        raise CorruptFileError(f"{path}: damaged.")
    return manifest


def _sha256(manifest: Mapping[str, Any]) -> str:
    """Return the digest of what a manifest says, not of how it is written."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(manifest)), sort_keys=True).encode()).hexdigest()
