"""Atomic, checksummed save and load of tensors and JSON. No pickle; nothing half-written is ever visible."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from workers.errors import Corrupt
from workers.files import sync_folder, write_bytes, write_json

MANIFEST = "manifest.json"


def save(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any]) -> None:
    """Write `NAME.safetensors` for each group of tensors and, last, the manifest: `record` and the checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, group in tensors.items():
        content = save_tensors({k: v.detach().cpu().contiguous() for k, v in group.items()})
        write_bytes(folder / f"{name}.safetensors", content)
        files[f"{name}.safetensors"] = hashlib.sha256(content).hexdigest()
    write_json(folder / MANIFEST, {**record, "files": files})


def record(folder: Path) -> dict[str, Any]:
    """The manifest. Raises FileNotFoundError or Corrupt."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise Corrupt(f"{folder / MANIFEST}: damaged. Remove the folder to train this fit again.") from None
    assert isinstance(content, dict)
    return content


def load(folder: Path, name: str) -> dict[str, Tensor]:
    """One group of tensors, its checksum verified. Raises Corrupt."""
    file = f"{name}.safetensors"
    expected = record(folder)["files"].get(file)
    try:
        content = (folder / file).read_bytes()
    except FileNotFoundError:
        raise Corrupt(f"{folder / file}: missing. Remove the folder to train this fit again.") from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise Corrupt(f"{folder / file}: the checksum differs from its manifest. Remove the folder to train this fit again.")
    try:
        tensors: dict[str, Tensor] = load_tensors(content)
        return tensors
    except SafetensorError as error:
        raise Corrupt(f"{folder / file}: {error}.") from None


def replace(new: Path, old: Path) -> None:
    """Put the complete folder `new` where `old` is."""
    aside = old.with_name(f".{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    sync_folder(old.parent)
    shutil.rmtree(aside, ignore_errors=True)
