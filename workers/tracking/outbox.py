"""Queue tracking updates on the local disk: append-only, sent later, never lost. Imports no MLflow.

HOME/spool/NAME.jsonl holds a header line that names the tracking store, then one entry per line; HOME/spool/NAME.sent holds the
number of bytes already sent. Entries are idempotent: sending one twice is the same as sending it once. Paths in the home are
stored relative to it, and its own store as "home", so that a moved home sends its own files to its own store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from workers.diagnostics.faults import fault_point
from workers.storage.files import sync_folder
from workers.storage.state_file import seal, unseal
from workers.tracking.database import HOME_DATABASE, uri_of
from workers.tracking.entries import (
    ENTRY,
    ArtifactEntry,
    Entry,
    ForgetEntry,
    MetricsEntry,
    ModelEntry,
    StatusEntry,
    TagsEntry,
)

VERSION = 1
OWN_STORE = "home"  # stands for the URI of the home's own store
FOLDER = "spool"


@dataclass(frozen=True)
class Outbox:
    """One file of entries. Only one process at a time appends to it."""

    path: Path

    @classmethod
    def open(cls, home: Path, name: str, uri: str) -> Outbox:
        """Return the outbox of this name for a tracking store, creating it if it does not exist."""
        outbox = cls.in_home(home, name)
        outbox.path.parent.mkdir(parents=True, exist_ok=True)
        if not outbox.uri:  # it is new, or its first line is damaged
            outbox._append({"uri": OWN_STORE if uri == outbox.own_uri else uri, "version": VERSION})
            sync_folder(outbox.path.parent)
        return outbox

    @classmethod
    def in_home(cls, home: Path, name: str) -> Outbox:
        """Return the outbox of this name, which need not exist."""
        return cls(home / FOLDER / f"{name}.jsonl")

    @classmethod
    def all_in_home(cls, home: Path) -> list[Outbox]:
        """Return every outbox of a home."""
        return [cls(path) for path in sorted((home / FOLDER).glob("*.jsonl"))]

    @property
    def uri(self) -> str:
        """URI of the tracking store for these entries; "" if the header line is damaged."""
        uri = next((str(values["uri"]) for values, _ in self._lines(0) if "uri" in values), "")
        return self.own_uri if uri == OWN_STORE else uri

    @property
    def home(self) -> Path:
        """The home that contains the outbox."""
        return self.path.absolute().parents[1]

    @property
    def own_uri(self) -> str:
        """URI of the home's own tracking store."""
        return uri_of(self.home / HOME_DATABASE)

    def metrics(self, run: str, values: Mapping[str, float], step: int, time_ms: int) -> None:
        """Add metrics of a run at a step, with their time in milliseconds since 1970."""
        self._add(MetricsEntry(run=run, metrics=dict(values), step=step, time=time_ms))

    def tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Add tags of a run."""
        self._add(TagsEntry(run=run, tags=dict(tags)))

    def artifact(self, run: str, path: Path, folder: str | None = None) -> None:
        """Add a file or a folder as an artifact of a run. It is read when it is sent."""
        self._add(ArtifactEntry(run=run, artifact=self._within(path), folder=folder))

    def status(self, run: str, status: str, time_ms: int, tags: Mapping[str, str] | None = None) -> None:
        """Add the MLflow status of a run, with the tags that belong to it."""
        self._add(StatusEntry(run=run, status=status, time=time_ms, tags=dict(tags or {})))

    def model(self, run: str, name: str, onnx_file: Path, may_lead: bool) -> None:
        """Add a fused model for the registry. `may_lead` says whether it is surely better than guessing."""
        self._add(ModelEntry(run=run, model=name, path=self._within(onnx_file), may_lead=may_lead))

    def delete_checkpoint(self, run: str) -> None:
        """Add the deletion of a run's checkpoint."""
        self._add(ForgetEntry(run=run, forget="checkpoint"))

    def steps(self) -> set[int]:
        """Return the steps with metrics in this outbox, sent or not."""
        return {entry.step for entry, _ in self._entries(0) if isinstance(entry, MetricsEntry)}

    def unsent(self) -> list[tuple[Entry, int]]:
        """Return the unsent entries, each with the offset of its end. Lines torn by a crash are skipped."""
        offset, passed = self._sent()
        return [(entry, end) for entry, end in self._entries(offset) if end not in passed]

    def unreadable(self) -> int:
        """Return the number of unsent lines that cannot be read."""
        content = self.path.read_bytes()[self._sent()[0] :] if self.path.exists() else b""
        lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n") and line.strip()]
        return sum(_values(line) is None for line in lines)

    def mark_sent(self, ends: Iterable[int]) -> None:
        """Remember entries as sent, by their ends. If what is stored is lost, entries are sent again."""
        fault_point("outbox.sent")
        offset, passed = self._sent()
        passed.update(ends)
        for _, end in self._entries(offset):
            if end not in passed:
                break
            offset = end
        later = sorted(end for end in passed if end > offset)  # sent past one that is stuck
        self.path.with_suffix(".sent").write_text(" ".join(map(str, (offset, *later))))

    def _sent(self) -> tuple[int, set[int]]:
        """Return the offset before which all is sent, and the ends of later entries that are; 0 and none if that is lost."""
        try:
            offset, *passed = map(int, self.path.with_suffix(".sent").read_text().split())
            with open(self.path, "rb") as file:
                file.seek(max(offset - 1, 0))
                return (offset, set(passed)) if offset == 0 or file.read(1) == b"\n" else (0, set())
        except (FileNotFoundError, ValueError):
            return 0, set()

    def _add(self, entry: Entry) -> None:
        self._append(entry.model_dump())

    def _append(self, values: dict[str, object]) -> None:
        """Add a line with its checksum."""
        line = json.dumps(seal(values)).encode() + b"\n"
        with open(self.path, "a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _within(self, path: Path) -> str:
        """Return a path as stored: relative to the home if inside it, else absolute."""
        absolute = path.absolute()
        return str(absolute.relative_to(self.home) if absolute.is_relative_to(self.home) else absolute)

    def _entries(self, offset: int) -> Iterator[tuple[Entry, int]]:
        for values, end in self._lines(offset):
            try:
                entry = ENTRY.validate_python(values)
            except ValidationError:
                continue
            if isinstance(entry, ArtifactEntry):
                entry = entry.model_copy(update={"artifact": str(self.home / entry.artifact)})
            elif isinstance(entry, ModelEntry):
                entry = entry.model_copy(update={"path": str(self.home / entry.path)})
            yield entry, end

    def _lines(self, offset: int) -> Iterator[tuple[dict[str, object], int]]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in content[offset:].splitlines(keepends=True):
            offset += len(line)
            if line.endswith(b"\n") and (values := _values(line)) is not None:
                yield values, offset


def _values(line: bytes) -> dict[str, object] | None:
    """Return the values of a line, or None if it is damaged."""
    try:
        return unseal(json.loads(line))
    except ValueError:
        return None
