"""Talk to MLflow's tracking store.

The driver creates the experiment and the runs; a trainer writes to its own run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

# Set before mlflow is imported: no pickle is ever loaded, and no call blocks for minutes when a server is down.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is ours, and JSON under --json

import logging

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from workers.errors import ConclaveError, StoreUnavailableError, UserInputError, first_line
from workers.tracking.database import ensure_database, path_of
from workers.tracking.entries import (
    ArtifactEntry,
    Entry,
    ForgetEntry,
    MetricsEntry,
    ModelEntry,
    RefusedEntryError,
    StatusEntry,
    TagsEntry,
)
from workers.tracking.served_package import save_served_model

logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it logs what it raises, with a traceback
logging.getLogger("alembic").setLevel(logging.ERROR)

# Not PERMISSION_DENIED: a proxy, or a server restarted with other allowed host names, returns it for every request.
PERMANENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"}
STATUS_TIME = "status_time"  # run tag: time of its last status change, in milliseconds since 1970
Given = ParamSpec("Given")
Answer = TypeVar("Answer")
OLDEST_FIRST = ["attributes.start_time ASC"]
EPOCH_KEY = "train/loss"  # logged once per epoch, so its steps are the epochs of a run


def _translate_errors(
    method: Callable[Concatenate[TrackingClient, Given], Answer],
) -> Callable[Concatenate[TrackingClient, Given], Answer]:
    """Convert a method's MLflow errors to our own, with a message for the user.

    Raises StoreUnavailableError if the database is locked or the server is down, and ConclaveError if MLflow refuses for good.
    """

    @wraps(method)
    def call(self: TrackingClient, /, *given: Given.args, **named: Given.kwargs) -> Answer:
        try:
            return method(self, *given, **named)
        except MlflowException as error:
            kind = ConclaveError if error.error_code in PERMANENT else StoreUnavailableError
            raise kind(f"tracking {self.uri}: {first_line(error)[:200]}. What is finished is kept: run again.") from error

    return call


def check_artifacts(uri: str, experiment: str, location: str) -> None:
    """Check that artifacts go to the server, or to storage that all machines reach. Raises UserInputError."""
    if urlsplit(location).scheme in ("", "file"):
        raise UserInputError(
            f"tracking {uri}: it keeps artifacts at {location}, a path that each client would look for on its own disk. "
            f"Start the server with `--serve-artifacts --artifacts-destination {unquote(urlsplit(location).path)}`, and name "
            f"another experiment (`tracking.experiment`), for {experiment} keeps its place."
        )


@dataclass(frozen=True)
class SearchedRun:
    """A tracking run of a sweep, or of one of its members or searches.

    Attributes:
        run: Run id.
        signature: The signature of its training; "" if it is not a training.
        status: Its MLflow status.
        is_empty: Whether it has no metrics.
        since: Time of its last status change, in milliseconds since 1970; 0 if unknown.
    """

    run: str
    signature: str
    status: str
    is_empty: bool
    since: int


@dataclass(frozen=True)
class TrackingClient:
    """A tracking store.

    Attributes:
        uri: Its URI.
        is_own: Whether it is the database of the home, which is migrated if it is of an older MLflow.
        notes: Sentences for the user on what was registered.
    """

    uri: str
    is_own: bool = False
    notes: list[str] = field(default_factory=list, init=False, compare=False)
    _epochs: dict[str, set[int]] = field(default_factory=dict, init=False, repr=False, compare=False)  # already sent, by run

    @cached_property
    def client(self) -> Any:
        """MLflow's own client. Raises ConclaveError if the store is a database file that cannot be used."""
        if database := path_of(self.uri):
            ensure_database(database, self.is_own)
        return mlflow.MlflowClient(self.uri, self.uri)

    @_translate_errors
    def experiment(self, name: str, artifacts: Path | None) -> str:
        """Return an experiment's id, creating the experiment if it does not exist.

        Args:
            name: The experiment's name.
            artifacts: Folder for its artifacts; None if the server chooses it.

        Raises:
            ConclaveError: If the store is unreachable, or the experiment was deleted.
        """
        experiment = self.client.get_experiment_by_name(name)
        if experiment and experiment.lifecycle_stage != "active":
            restore = f"MLFLOW_TRACKING_URI={self.uri} mlflow experiments restore --experiment-id {experiment.experiment_id}"
            raise ConclaveError(
                f"tracking {self.uri}: the experiment {name} was deleted. Restore it (`{restore}`), or name another: "
                "`tracking: {experiment: ...}`."
            )
        if experiment:
            return str(experiment.experiment_id)
        location = artifacts.absolute().as_uri() if artifacts else None
        made = str(self.client.create_experiment(name, location))
        if self.uri.startswith("http"):
            check_artifacts(self.uri, name, str(self.client.get_experiment(made).artifact_location))
        return made

    @_translate_errors
    def artifact_location(self, experiment: str) -> str | None:
        """Return where an experiment's artifacts lie; None if it does not exist yet."""
        found = self.client.get_experiment_by_name(experiment)
        return str(found.artifact_location) if found else None

    @_translate_errors
    def create_run(self, experiment: str, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """Create a run, nested under `parent` if given, and return its id."""
        all_tags = {**tags, "mlflow.source.name": "conclave", "mlflow.user": os.environ.get("USER", "conclave")}
        if parent:
            all_tags["mlflow.parentRunId"] = parent
        return str(self.client.create_run(experiment, run_name=name, tags=all_tags).info.run_id)

    @_translate_errors
    def has_run(self, run: str | None) -> bool:
        """Return whether a run exists and is not deleted."""
        try:
            return run is not None and self.client.get_run(run).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code in PERMANENT:
                return False
            raise

    @_translate_errors
    def has_model(self, name: str, run: str) -> bool:
        """Return whether a version of a registered model is of this run."""
        return any(version.run_id == run for version in self.client.search_model_versions(f"name = '{name}'"))

    @_translate_errors
    def log_params(self, run: str, values: Mapping[str, object], is_new: bool = False) -> None:
        """Log parameters. MLflow cannot change parameters, so existing values stay; a new run has none."""
        known = {} if is_new else self.client.get_run(run).data.params
        missing = [Param(k, str(v)[:6000]) for k, v in values.items() if k not in known]
        for at in range(0, len(missing), 100):
            self.client.log_batch(run, params=missing[at : at + 100])

    def log_artifact(self, run: str, path: Path, folder: str | None = None) -> None:
        """Copy a file or a folder into a run's artifacts, replacing existing files."""
        if path_of(self.uri) and (folder or path.is_file()):
            self._remove_foreign_artifact(run, f"{folder or ''}/{'' if path.is_dir() else path.name}".strip("/"))
        if path.is_dir():
            self.client.log_artifacts(run, str(path), folder)
        else:
            self.client.log_artifact(run, str(path), folder)

    def _remove_foreign_artifact(self, run: str, name: str) -> None:
        """Remove another user's artifact from a shared home: we may replace it, but not modify it."""
        uri = urlsplit(str(self.client.get_run(run).info.artifact_uri))
        target = Path(unquote(uri.path), name)
        if uri.scheme in ("", "file") and target.exists() and target.stat().st_uid != os.getuid():
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    def download(self, run: str, folder: str, into: Path | None = None) -> Path | None:
        """Download an artifact folder of a run.

        Args:
            run: The run's id.
            folder: Path of the folder, or of a file, within the run's artifacts.
            into: Folder to copy it to. By default a local store's folder is used in place, and a remote store's folder is
                downloaded to a temporary folder.

        Returns:
            The local path, or None if the run has no such artifact.

        Raises:
            StoreUnavailableError: If the store does not answer. Nothing is known of the artifact then.
        """
        target, above = str(into) if into else None, str(PurePosixPath(folder).parent)
        try:
            listed = self.client.list_artifacts(run, None if above == "." else above)
            if folder not in [item.path for item in listed]:
                return None
            path = mlflow.artifacts.download_artifacts(run_id=run, artifact_path=folder, tracking_uri=self.uri, dst_path=target)
            return Path(path)
        except (MlflowException, OSError) as error:
            if isinstance(error, FileNotFoundError) or getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise StoreUnavailableError(f"tracking {self.uri}: {first_line(error)[:200]}. Run again.") from error

    def send(self, entries: Sequence[Entry]) -> None:
        """Send spooled entries, batching a run's metrics. Raises RefusedEntryError if an entry can never be sent."""
        try:
            for run, batch in groupby(entries, lambda entry: entry.run if isinstance(entry, MetricsEntry) else None):
                if run is not None:
                    self._send_metrics(run, [entry for entry in batch if isinstance(entry, MetricsEntry)])
                    continue
                for entry in batch:
                    self._send_one(entry)
        except MlflowException as error:
            if error.error_code in PERMANENT:
                raise RefusedEntryError(f"{self.uri}: {first_line(error)}") from None
            raise

    def _send_metrics(self, run: str, entries: Sequence[MetricsEntry]) -> None:
        """Send metrics, except for epochs that the run has already: an epoch trained again adds no second point."""
        epochs = {entry.step for entry in entries if EPOCH_KEY in entry.metrics}
        known = self._epochs_of(run) if epochs else set()
        points = [
            Metric(key, value, entry.time, entry.step)
            for entry in entries
            if not (EPOCH_KEY in entry.metrics and entry.step in known)
            for key, value in entry.metrics.items()
        ]
        try:
            for at in range(0, len(points), 500):
                self.client.log_batch(run, metrics=points[at : at + 500])
        except Exception:  # some points may have arrived
            self._epochs.pop(run, None)
            raise
        known |= epochs

    def _epochs_of(self, run: str) -> set[int]:
        """Return the epochs whose metrics a run has. Queries the store only once per run."""
        if run not in self._epochs:
            self._epochs[run] = {point.step for point in self.client.get_metric_history(run, EPOCH_KEY)}
        return self._epochs[run]

    def _send_one(self, entry: Entry) -> None:
        match entry:
            case TagsEntry(run=run, tags=tags):
                self.client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])
            case ArtifactEntry(run=run, artifact=path, folder=folder):
                if Path(path).exists():  # else it was replaced by something newer, which has its own entry
                    self.log_artifact(run, Path(path), folder)
            case StatusEntry():
                self._send_status(entry)
            case ForgetEntry(run=run, forget=folder):
                self.delete_artifacts(run, folder)
            case ModelEntry(run=run, model=name, path=path, may_lead=may_lead):
                self.register(run, name, Path(path), may_lead)

    def _send_status(self, entry: StatusEntry) -> None:
        """Set a status, unless the run has a later one: entries spooled during an outage may arrive late."""
        if _status_time(self.client.get_run(entry.run)) > entry.time:
            return
        if entry.status == "RUNNING":
            self.client.update_run(entry.run, status=entry.status)
        else:
            self.client.set_terminated(entry.run, entry.status, entry.time)
        tags = {**entry.tags, STATUS_TIME: str(entry.time)}
        self.client.log_batch(entry.run, tags=[RunTag(key, value) for key, value in tags.items()])

    def delete_artifacts(self, run: str, folder: str) -> None:
        """Remove a folder of a run's artifacts."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if self.client.list_artifacts(run, folder):
            get_artifact_repository(self.client.get_run(run).info.artifact_uri, self.uri).delete_artifacts(folder)

    @_translate_errors
    def experiment_of(self, run: str) -> str:
        """Return the id of a run's experiment."""
        return str(self.client.get_run(run).info.experiment_id)

    @_translate_errors
    def status(self, run: str) -> str:
        """Return the MLflow status of a run."""
        return str(self.client.get_run(run).info.status)

    @_translate_errors
    def find_training(self, experiment: str, signature: str) -> str | None:
        """Return a run of the experiment that holds the finished training with this signature, or None."""
        runs = self.client.search_runs([experiment], f"tags.signature = '{signature}' and tags.state = 'done'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    @_translate_errors
    def sweeps_of(self, experiment: str, folder: str) -> list[SearchedRun]:
        """Return the sweep runs of a folder, given its identifier; oldest first.

        There are several if a response got lost and MLflow's client retried the request.
        """
        return self._searched(experiment, f"tags.role = 'sweep' and tags.folder = '{folder}'")

    @_translate_errors
    def children(self, experiment: str, sweep: str) -> list[SearchedRun]:
        """Return the runs of a sweep, oldest first, without restarted runs."""
        return self._searched(experiment, f"tags.sweep = '{sweep}' and tags.state != 'restarted'")

    def _searched(self, experiment: str, wanted: str) -> list[SearchedRun]:
        found: list[SearchedRun] = []
        token = None
        while token != "":
            page = self.client.search_runs([experiment], wanted, max_results=1000, order_by=OLDEST_FIRST, page_token=token)
            found += [
                SearchedRun(
                    run=str(run.info.run_id),
                    signature=run.data.tags.get("signature", ""),
                    status=run.info.status,
                    is_empty=not run.data.metrics,
                    since=_status_time(run),
                )
                for run in page
            ]
            token = page.token or ""
        return found

    @_translate_errors
    def delete_run(self, run: str) -> None:
        """Delete a run. MLflow only marks it as deleted."""
        self.client.delete_run(run)

    @_translate_errors
    def runs_with_tag(self, experiment: str, tag: str, value: str) -> dict[str, str]:
        """Return the newest run with this tag for each training signature in an experiment."""
        found = self._searched(experiment, f"tags.{tag} = '{value}' and tags.state != 'restarted'")
        return {run.signature: run.run for run in found if run.signature}

    def register(self, run: str, name: str, onnx_file: Path, may_lead: bool = True) -> str:
        """Log a fused ONNX file as a model of a sweep's run, register it once, and give it an alias. Return its version.

        It becomes the champion if it may lead, and the present champion, if any, is of the same sweep; else the challenger.

        Args:
            run: The sweep's run.
            name: The registered name.
            onnx_file: The model.
            may_lead: Whether it is surely better than guessing; otherwise it gets no alias.
        """
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._version_of(run, name, onnx_file)
        aliases = self.client.get_registered_model(name).aliases
        champion = aliases.get("champion")
        if version in aliases.values():
            return version
        if not may_lead:
            what = ", without an alias: it is not surely better than guessing"
        elif champion and not self._are_of_one_sweep(run, self.client.get_model_version(name, champion).run_id):
            self.client.set_registered_model_alias(name, "challenger", version)
            what = f", as challenger: the champion, version {champion}, is of another sweep, and stays"
        else:
            self.client.set_registered_model_alias(name, "champion", version)
            what = ", as champion" + (f" (before, it was version {champion})" if champion else "")
        self.notes.append(f"Registered in MLflow: {name}, version {version}{what}.")
        return version

    def _version_of(self, run: str, name: str, onnx_file: Path) -> str:
        """Return the version of a run's model, made now unless an earlier attempt has made it."""
        digest = hashlib.sha256(onnx_file.read_bytes()).hexdigest()
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.run_id == run and version.tags.get("sha256") == digest:
                return str(version.version)
        self._log_model(run, onnx_file)
        source = f"{self.client.get_run(run).info.artifact_uri}/fused_model"
        return str(self.client.create_model_version(name, source, run, tags={"sha256": digest}).version)

    def _are_of_one_sweep(self, run: str, other: str) -> bool:
        """Return whether two runs are of the same sweep of the same home."""
        if run == other:
            return True
        try:
            folders = [self.client.get_run(one).data.tags.get("folder") for one in (run, other)]
        except MlflowException as error:
            if error.error_code in PERMANENT:  # the champion's run is gone, and nobody can tell whose it was
                return False
            raise
        return folders[0] is not None and folders[0] == folders[1]

    def _log_model(self, run: str, onnx_file: Path) -> None:
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        with tempfile.TemporaryDirectory() as work:
            target = Path(work, "model")
            save_served_model(onnx_file, target)
            self.log_artifact(run, target, "fused_model")


def _status_time(run: Any) -> int:
    """Return the time of a run's last status change, in milliseconds since 1970; 0 if unknown."""
    since = run.data.tags.get(STATUS_TIME, "0")
    return int(since) if since.isdecimal() else 0
