"""The entries of an outbox: updates of a tracking run, each stored as a line of JSON."""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict, TypeAdapter


def now_ms() -> int:
    """Return the time in milliseconds since 1970, as entries hold it."""
    return round(time.time() * 1000)


class RefusedEntryError(Exception):
    """The store will never accept this entry, for example because its run was deleted."""


class RunEntry(BaseModel):
    """Base of all entries.

    Attributes:
        run: The run's id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str


class MetricsEntry(RunEntry):
    """Metrics of a run at a step, with their time in milliseconds since 1970."""

    metrics: dict[str, float]
    step: int
    time: int


class TagsEntry(RunEntry):
    """Tags of a run."""

    tags: dict[str, str]


class ArtifactEntry(RunEntry):
    """A file or folder to add to a run's artifacts, and its target folder there. It is read when it is sent."""

    artifact: str
    folder: str | None = None


class StatusEntry(RunEntry):
    """The status of a run, and the tags that belong to it.

    Attributes:
        status: The MLflow status.
        time: Time of the change, in milliseconds since 1970. A later status in the store takes precedence.
        tags: Tags that change with the status.
    """

    status: str
    time: int
    tags: dict[str, str] = {}


class ModelEntry(RunEntry):
    """A fused model for the registry.

    Attributes:
        model: Its registered name.
        path: Its ONNX file.
        may_lead: Whether it is surely better than guessing.
    """

    model: str
    path: str
    may_lead: bool = True


class ForgetEntry(RunEntry):
    """A folder to delete from a run's artifacts."""

    forget: str


Entry = MetricsEntry | TagsEntry | ArtifactEntry | StatusEntry | ModelEntry | ForgetEntry
ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)
