"""Save tensors to a folder atomically, and verify their checksums on reading. No pickle.

A folder holds one `NAME.safetensors` file per group of tensors, and a manifest, written last, with their checksums.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from workers.diagnostics.faults import fault_point
from workers.errors import CorruptFileError
from workers.storage.files import sync_folder, write_bytes
from workers.storage.manifest import MANIFEST, Manifest, Record, read_manifest
from workers.storage.state_file import write_state

Groups = Mapping[str, Mapping[str, Tensor]]
SUFFIX = ".safetensors"


def save_tensors(folder: Path, groups: Groups, record: Manifest, point: str = "artifact") -> None:
    """Write groups of tensors and, last, the manifest.

    Args:
        folder: The folder; created if missing.
        groups: The tensors, by file name and tensor name.
        record: The record to store in the manifest next to the checksums.
        point: Name of the fault points that tests inject faults at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, group in groups.items():
        content = to_bytes({k: v.detach().cpu().contiguous() for k, v in group.items()})
        write_bytes(folder / f"{name}{SUFFIX}", content, point)
        files[f"{name}{SUFFIX}"] = hashlib.sha256(content).hexdigest()
    fault_point(f"{point}.manifest")
    write_state(folder / MANIFEST, record.model_copy(update={"files": files}), f"{point}.manifest")


def verify_folder(folder: Path, kind: type[Record]) -> Record:
    """Return the record of a folder after checking every file in it. Raises FileNotFoundError or CorruptFileError."""
    record = read_manifest(folder, kind)
    for name in record.files:
        load_tensors(folder, name)
    return record


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Return one group of tensors, verified by its checksum. Raises FileNotFoundError or CorruptFileError."""
    file = f"{name.removesuffix(SUFFIX)}{SUFFIX}"
    expected = read_manifest(folder, Manifest).files.get(file)
    try:
        content = (folder / file).read_bytes()
    except FileNotFoundError:
        raise CorruptFileError(f"{folder / file}: missing.") from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise CorruptFileError(f"{folder / file}: the checksum differs from its manifest.")
    try:
        tensors: dict[str, Tensor] = from_bytes(content)
    except SafetensorError as error:
        raise CorruptFileError(f"{folder / file}: {error}.") from None
    return tensors


def replace_folder(new: Path, old: Path) -> None:
    """Replace the folder `old` by the complete folder `new`."""
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)
    sync_folder(old.parent)
