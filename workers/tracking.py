"""MLflow: the only importer of it. The driver creates experiment and runs; a trainer writes to the run it was given."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# Set before mlflow is imported: no pickle is ever loaded, and no call blocks for minutes when a server is away.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import logging

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from workers.errors import ConclaveError

logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)

CHECKPOINT_SECONDS = 30.0
Values = Mapping[str, float]


@dataclass(frozen=True)
class Tracking:
    """A tracking store, by its URI."""

    uri: str

    @cached_property
    def client(self) -> Any:
        return mlflow.MlflowClient(self.uri, self.uri)

    def experiment(self, name: str, artifacts: Path | None) -> str:
        """The experiment's id; created with its artifacts in `artifacts`, or where the server keeps them."""
        try:
            found = self.client.get_experiment_by_name(name)
            if found:
                return str(found.experiment_id)
            location = artifacts.absolute().as_uri() if artifacts else None
            return str(self.client.create_experiment(name, location))
        except MlflowException as error:
            raise ConclaveError(f"tracking {self.uri}: {str(error).splitlines()[0]}") from None

    def start(self, experiment: str, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """A new run's id."""
        every = {**tags, "mlflow.source.name": "conclave", "mlflow.user": os.environ.get("USER", "conclave")}
        if parent:
            every["mlflow.parentRunId"] = parent
        return str(self.client.create_run(experiment, run_name=name, tags=every).info.run_id)

    def alive(self, run: str | None) -> bool:
        try:
            return run is not None and self.client.get_run(run).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def log(self, run: str, values: Values, step: int = 0, tags: Mapping[str, str] | None = None) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(k, float(v), now, step) for k, v in values.items()]
        self.client.log_batch(run, metrics=metrics, tags=[RunTag(k, str(v)) for k, v in (tags or {}).items()])

    def params(self, run: str, values: Mapping[str, object]) -> None:
        """Parameters can't change in MLflow; those that the run has already are left as they are."""
        known = self.client.get_run(run).data.params
        new = [Param(k, str(v)[:6000]) for k, v in values.items() if k not in known]
        for at in range(0, len(new), 100):
            self.client.log_batch(run, params=new[at : at + 100])

    def artifact(self, run: str, path: Path, folder: str | None = None) -> None:
        """Copy a file or a folder into the run, replacing what is there."""
        if path.is_dir():
            self.client.log_artifacts(run, str(path), folder)
        else:
            self.client.log_artifact(run, str(path), folder)

    def fetch(self, run: str, folder: str) -> Path | None:
        """The local path of a run's artifact folder: in place where the store is local. None where it isn't there."""
        try:
            return Path(mlflow.artifacts.download_artifacts(run_id=run, artifact_path=folder, tracking_uri=self.uri))
        except (MlflowException, OSError):
            return None

    def end(self, run: str, status: str = "FINISHED") -> None:
        self.client.set_terminated(run, status)

    def reopen(self, run: str) -> None:
        self.client.update_run(run, status="RUNNING")

    def finished_fit(self, experiment: str, signature: str) -> str | None:
        """A run of the experiment that holds the finished fit with this signature."""
        found = self.client.search_runs([experiment], f"tags.signature = '{signature}' and tags.state = 'done'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def register(self, run: str, name: str, onnx_file: Path, example: Any, champion: bool) -> str:
        """Log the ONNX file as a model of the run and register it (pyfunc on ONNX Runtime). Gives its version."""
        import numpy as np
        import onnx
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        size, classes = example[0].shape[1], example[1].shape[1]
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype("uint8"), (-1, size, size, 3), "images")]),
            Schema([TensorSpec(np.dtype("float32"), (-1, classes), "probabilities")]),
        )
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        with tempfile.TemporaryDirectory() as work:
            target = Path(work, "model")
            mlflow.onnx.save_model(
                onnx.load(str(onnx_file)),
                str(target),
                signature=signature,
                input_example={"images": example[0]},
                pip_requirements=[
                    f"onnxruntime=={_version('onnxruntime')}",
                    f"onnx=={_version('onnx')}",
                    f"mlflow=={_version('mlflow')}",
                ],
            )
            self.client.log_artifacts(run, str(target), "fused_model")
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run).info.artifact_uri}/fused_model"
        version = str(self.client.create_model_version(name, source, run).version)
        if champion:
            self.client.set_registered_model_alias(name, "champion", version)
        return version


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


class FitRun:
    """A fit's run, written by its trainer. A tracking store that is away never fails a fit: it is noted and told."""

    def __init__(self, uri: str, run: str, checkpoint: Path) -> None:
        self.tracking, self.run, self.checkpoint = Tracking(uri), run, checkpoint
        self.sent = time.monotonic()
        self.troubles: list[str] = []

    def epoch(self, epoch: int, metrics: Values) -> None:
        self._safely(lambda: self.tracking.log(self.run, metrics, epoch + 1))
        if time.monotonic() - self.sent > CHECKPOINT_SECONDS and self.checkpoint.is_dir():
            self._safely(lambda: self.tracking.artifact(self.run, self.checkpoint, "checkpoint"))
            self.sent = time.monotonic()

    def note(self, text: str) -> None:
        self._safely(lambda: self.tracking.log(self.run, {}, tags={"note": text, "mlflow.note.content": text}))

    def done(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._safely(lambda: self._done(folder, manifest))

    def _done(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.tracking.artifact(self.run, folder, "fit")
        drop = self.tracking.fetch(self.run, "checkpoint") if self._local() else None
        if drop:
            shutil.rmtree(drop, ignore_errors=True)
        tags = {"state": "done", "weights_sha256": str(manifest["weights_sha256"]), "device": str(manifest["device"])}
        self.tracking.log(self.run, {"train_seconds": float(manifest["train_seconds"])}, tags=tags)
        self.tracking.end(self.run)

    def failed(self, reason: str) -> None:
        self._safely(lambda: self.tracking.log(self.run, {}, tags={"state": "failed", "reason": reason[:500]}))
        self._safely(lambda: self.tracking.end(self.run, "FAILED"))

    def _local(self) -> bool:
        return str(self.tracking.client.get_run(self.run).info.artifact_uri).startswith(("file:", "/"))

    def _safely(self, call: Any) -> None:
        try:
            call()
        except Exception as error:  # whatever a network and a server can do; training goes on
            self.troubles.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become JSON."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return flat
