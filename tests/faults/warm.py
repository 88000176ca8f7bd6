"""Imported once by the process from which the fault tests fork: whatever every sweep would load or build again.

Nothing here trains: a process that has run a backward pass can't be forked.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import mlflow.onnx
import mlflow.store.tracking.sqlalchemy_store
import onnxruntime
import torch
from mlflow.utils import requirements_utils
from torch import nn

import fusion.export.onnx_export
import orchestrator.cli.entry
import orchestrator.fusing.step
import orchestrator.reporting.report
import orchestrator.sweep
import workers.runtime.job_runner
import workers.runtime.training_job
import workers.tracking.job_run

__all__ = ["fusion", "mlflow", "onnxruntime", "orchestrator", "workers"]

with tempfile.TemporaryDirectory() as folder:
    program = torch.onnx.export(nn.Linear(2, 2).eval(), (torch.zeros(2, 2),), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(Path(folder, "m.onnx")))
    figure, axes = plt.subplots()
    axes.plot([0, 1], label="x")
    axes.legend()
    figure.savefig(Path(folder, "p.png"))
    plt.close(figure)
requirements_utils._init_packages_to_modules_map()  # MLflow's own cache, made at the first model that it saves
