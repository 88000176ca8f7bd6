"""Save a fused ONNX file as an MLflow model, with the few Conclave modules that serve it."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from pathlib import Path

SERVED_PACKAGE = "conclave_served"  # package name of the serving code in a registered model
SERVED_MODULES = ("__init__.py", "data/__init__.py", "data/images.py", "tracking/__init__.py", "tracking/served_model.py")
SERVED_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pi-heif", "pillow")


def save_served_model(onnx_file: Path, target: Path) -> None:
    """Save a fused ONNX file as an MLflow model that `ServedModel` serves, without pickle.

    Args:
        onnx_file: The ONNX file.
        target: The folder to create; it must not exist.
    """
    import mlflow
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    stored = {entry.key: entry.value for entry in onnx.load(str(onnx_file)).metadata_props}
    classes = json.loads(stored["classes"])
    # No input schema: with one, MLflow would silently truncate floats to uint8, and refuse image files.
    outputs = [TensorSpec(np.dtype("float32"), (-1, len(classes)), "probabilities"), TensorSpec(np.dtype("str"), (-1,), "labels")]
    with tempfile.TemporaryDirectory() as work:
        mlflow.pyfunc.save_model(
            str(target),
            loader_module=f"{SERVED_PACKAGE}.tracking.served_model",
            data_path=str(onnx_file),
            code_paths=[str(_copy_served_modules(Path(work)))],
            signature=ModelSignature(outputs=Schema(outputs)),
            metadata={"classes": classes},
            input_example=[_grey_png()],  # shown on MLflow's page of the model, and tried while saving
            pip_requirements=[f"{name}=={_version(name)}" for name in SERVED_REQUIREMENTS],
        )


def _grey_png() -> str:
    """Return a small image file in base64."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), (128, 128, 128)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _copy_served_modules(work: Path) -> Path:
    """Copy the serving modules into a package whose name clashes with no installed one. Return its folder."""
    package, source = work / SERVED_PACKAGE, Path(__file__).parents[1]
    for name in SERVED_MODULES:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes((source / name).read_bytes())
    return package


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
