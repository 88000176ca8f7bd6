"""Atomic, checksummed save and load of tensors and JSON. No pickle; nothing half-written is ever visible.

A folder of tensors is `NAME.safetensors` files and a manifest, written last, that holds their checksums.
`Checkpoints` keeps the last two such folders of one fit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from workers import legacy
from workers.errors import Corrupt
from workers.faults import reach
from workers.files import sync_folder, write_bytes

MANIFEST = "manifest.json"
KEPT = 2
Groups = Mapping[str, Mapping[str, Tensor]]


def save(folder: Path, tensors: Groups, record: Mapping[str, Any], point: str = "artifact") -> None:
    """Write `NAME.safetensors` for each group of tensors and, last, the manifest: `record` and the checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, group in tensors.items():
        content = save_tensors({k: v.detach().cpu().contiguous() for k, v in group.items()})
        write_bytes(folder / f"{name}.safetensors", content, point)
        files[f"{name}.safetensors"] = hashlib.sha256(content).hexdigest()
    reach(f"{point}.manifest")
    manifest = {**record, "files": files}
    content = json.dumps({**manifest, "sha256": _sha256(manifest)}, indent=1, allow_nan=False).encode()
    write_bytes(folder / MANIFEST, content, f"{point}.manifest")


def _sha256(manifest: Mapping[str, Any]) -> str:
    """Of what it says, not of how it is written."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(manifest)), sort_keys=True).encode()).hexdigest()


def record(folder: Path) -> dict[str, Any]:
    """The manifest, by its own checksum, which early versions did not write. Raises FileNotFoundError or Corrupt."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
            raise ValueError
        found: dict[str, Any] = content
        if legacy.has_own_checksum(found) and found.pop("sha256") != _sha256(found):
            raise ValueError
    except ValueError:
        raise Corrupt(f"{folder / MANIFEST}: damaged.") from None
    return found


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose every file is as it says. Raises FileNotFoundError or Corrupt."""
    found = record(folder)
    for name in found["files"]:
        load(folder, name)
    return found


def load(folder: Path, name: str) -> dict[str, Tensor]:
    """One group of tensors, its checksum verified. Raises Corrupt."""
    file = f"{name.removesuffix('.safetensors')}.safetensors"
    expected = record(folder)["files"].get(file)
    try:
        content = (folder / file).read_bytes()
    except FileNotFoundError:
        raise Corrupt(f"{folder / file}: missing.") from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise Corrupt(f"{folder / file}: the checksum differs from its manifest.")
    try:
        tensors: dict[str, Tensor] = load_tensors(content)
        return tensors
    except SafetensorError as error:
        raise Corrupt(f"{folder / file}: {error}.") from None


def replace(new: Path, old: Path) -> None:
    """Put the complete folder `new` where `old` is."""
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)
    sync_folder(old.parent)


def position(epoch: int, step: int) -> str:
    """The folder name of a checkpoint; names sort as positions do."""
    return f"{epoch:06d}-{step:08d}"


@dataclass(frozen=True)
class State:
    """What a checkpoint held."""

    folder: Path
    record: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoints:
    """The last two checkpoints of one fit, in `folder`/EPOCH-STEP. `owner` is the fit's signature.

    `told` hears of every checkpoint that could not be written or read while another way was left.
    """

    folder: Path
    owner: str
    told: Callable[[str], None] = lambda text: None

    def save(self, epoch: int, step: int, tensors: Groups, record: Mapping[str, Any]) -> None:
        """Write one. A full or failing disk is told, not raised: the fit goes on with the checkpoints that there are."""
        new, target = self.folder / ".new", self.folder / position(epoch, step)
        shutil.rmtree(new, ignore_errors=True)
        try:
            save(new, tensors, {**record, "owner": self.owner, "epoch": epoch, "step": step}, "checkpoint")
            reach("checkpoint.publish")
            replace(new, target)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            self.told(f"the checkpoint after epoch {epoch} could not be written ({error.strerror}): {self.folder}")
            return
        for old in self.found()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def take_over(self, other: Checkpoints, average: dict[str, Any] | None = None) -> None:
        """Begin where another fit ended, if it left its last checkpoint, with such an average, and this one has none."""
        state = other.newest() if not self.found() else None
        if state and average in (None, state.record.get("average")):
            kept = {k: v for k, v in state.record.items() if k not in ("owner", "epoch", "step", "files")}
            self.save(state.record["epoch"], state.record["step"], state.tensors, kept)

    def found(self) -> list[Path]:
        """Complete ones, oldest first."""
        return sorted(p.parent for p in self.folder.glob(f"[0-9]*/{MANIFEST}"))

    def newest(self) -> State | None:
        """The newest that can be read; None where there is none. Raises Corrupt, naming the files, where all are bad."""
        problems: list[str] = []
        for folder in reversed(self.found()):
            try:
                state = self._read(folder)
            except Corrupt as error:
                problems.append(str(error))
                continue
            for bad in problems:
                self.told(f"going on from the checkpoint before: {bad}")
            for later in [f for f in self.found() if f > folder]:
                shutil.rmtree(later)
            return state
        if problems:
            raise Corrupt("every checkpoint is bad: " + " ".join(problems))
        return None

    def _read(self, folder: Path) -> State:
        content = record(folder)
        if content.get("owner") != self.owner:
            raise Corrupt(f"{folder}: belongs to another fit ({content.get('owner')}).")
        if folder.name != position(content["epoch"], content["step"]):
            raise Corrupt(f"{folder}: holds the checkpoint of another step.")
        return State(folder, content, {name.removesuffix(".safetensors"): load(folder, name) for name in content["files"]})
