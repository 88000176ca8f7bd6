"""What has to reach the tracking store, written to the local disk first: append-only, sent later, never lost.

HOME/spool/NAME.jsonl holds one entry a line, HOME/spool/NAME.sent how many of its bytes were sent. Entries are
idempotent: sending one twice is the same as sending it once. No MLflow here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.files import write_bytes

Entry = dict[str, Any]


@dataclass(frozen=True)
class Spool:
    """One file; one process at a time appends to it."""

    path: Path

    @classmethod
    def of(cls, home: Path, name: str, uri: str) -> Spool:
        """The spool of this name for a tracking store, made if it isn't there."""
        spool = cls.at(home, name)
        spool.path.parent.mkdir(parents=True, exist_ok=True)
        cls.tidy(home, [name])
        if not spool.path.exists():
            spool._append({"uri": uri})
        return spool

    @classmethod
    def at(cls, home: Path, name: str) -> Spool:
        """The same, whether it is there or not."""
        return cls(home / "spool" / f"{name}.jsonl")

    @staticmethod
    def tidy(home: Path, names: Iterable[str]) -> None:
        """Remove what owners of these spools had begun to write when they were killed."""
        owned = set(names)
        for stale in (home / "spool").glob(".*.sent.*"):
            if stale.name[1:].rpartition(".sent.")[0] in owned:
                stale.unlink(missing_ok=True)

    @classmethod
    def all(cls, home: Path) -> list[Spool]:
        return [cls(path) for path in sorted((home / "spool").glob("*.jsonl"))]

    @property
    def uri(self) -> str:
        return next((str(e["uri"]) for e, _ in self._entries(0) if "uri" in e), "")

    def metrics(self, run: str, values: Mapping[str, float], step: int, time_ms: int) -> None:
        self._append({"run": run, "metrics": dict(values), "step": step, "time": time_ms})

    def tags(self, run: str, tags: Mapping[str, str]) -> None:
        self._append({"run": run, "tags": dict(tags)})

    def artifact(self, run: str, path: Path, folder: str | None = None) -> None:
        """A file or folder, read when it is sent."""
        self._append({"run": run, "artifact": str(path.absolute()), "folder": folder})

    def status(self, run: str, status: str, time_ms: int) -> None:
        self._append({"run": run, "status": status, "time": time_ms})

    def model(self, run: str, name: str, onnx_file: Path) -> None:
        """A fused model for the registry."""
        self._append({"run": run, "model": name, "path": str(onnx_file.absolute())})

    def forget_checkpoint(self, run: str) -> None:
        self._append({"run": run, "forget": "checkpoint"})

    def steps(self) -> set[int]:
        """The steps whose metrics are here, sent or not."""
        return {int(e["step"]) for e, _ in self._entries(0) if "metrics" in e}

    def unsent(self) -> list[tuple[Entry, int]]:
        """Entries that were not sent yet, each with the offset behind it. A line that a crash tore is passed over."""
        return [(entry, end) for entry, end in self._entries(self._offset()) if "uri" not in entry]

    def mark(self, offset: int) -> None:
        """Everything before `offset` was sent."""
        write_bytes(self.path.with_suffix(".sent"), str(offset).encode(), "spool")

    def _offset(self) -> int:
        try:
            return int(self.path.with_suffix(".sent").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _append(self, entry: Entry) -> None:
        line = json.dumps(entry).encode() + b"\n"
        with open(self.path, "a+b") as file:
            if file.tell() and _last_byte(file.fileno(), file.tell()) != b"\n":
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _entries(self, offset: int) -> Iterator[tuple[Entry, int]]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in content[offset:].splitlines(keepends=True):
            offset += len(line)
            if line.endswith(b"\n"):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield entry, offset


def _last_byte(handle: int, size: int) -> bytes:
    return os.pread(handle, 1, size - 1)
