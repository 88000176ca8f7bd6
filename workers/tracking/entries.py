"""The entries of an outbox: what can be told to a tracking store of a run. Each one is a line of JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, TypeAdapter


class RefusedEntryError(Exception):
    """The store answers, and will never take this entry; its run was deleted, for example."""


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
    """A file or a folder for a run's artifacts, and the folder there that it goes to. It is read when it is sent."""

    artifact: str
    folder: str | None = None


class StatusEntry(RunEntry):
    """The status of a run, by MLflow's word for it, and tags that belong to it.

    Attributes:
        status: The status.
        time: Since when, in milliseconds since 1970. A store that knows of a later status keeps that one.
        tags: Tags that change with the status.
    """

    status: str
    time: int
    tags: dict[str, str] = {}


class ModelEntry(RunEntry):
    """A fused model for the registry: its name there, and its ONNX file."""

    model: str
    path: str


class ForgetEntry(RunEntry):
    """A folder of a run's artifacts that nobody needs any more."""

    forget: str


Entry = MetricsEntry | TagsEntry | ArtifactEntry | StatusEntry | ModelEntry | ForgetEntry
ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)
