"""Exported models run on an ONNX Runtime that is years old, as on phones and servers that nobody updates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from fusion.export import quantization
from fusion.export.onnx_session import predict_probabilities
from tests.fusion.test_runtimes import SIZE, exported
from tests.old_packages import environment_with

OLD = ("onnxruntime==1.17.3", "numpy<2")
RUN = """
import sys
import numpy as np
import onnxruntime
assert onnxruntime.__version__ == "1.17.3"
images = np.load(sys.argv[1])
np.save(sys.argv[3], onnxruntime.InferenceSession(sys.argv[2]).run(None, {"images": images})[0])
"""


@pytest.fixture(scope="module")
def old_runtime(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which `import onnxruntime` is the old one."""
    return environment_with(OLD, tmp_path_factory.mktemp("old"))


@pytest.mark.parametrize("kind", ["float32", "int8", "float16", "flips"])
def test_an_old_runtime_gives_the_same_probabilities(kind: str, old_runtime: dict[str, str], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)
    model = exported(tmp_path / "model", images, flips=kind == "flips")
    if kind in ("int8", "float16"):
        source, model = model, tmp_path / f"{kind}.onnx"
        quantization.quantize(source, model, images) if kind == "int8" else quantization.to_float16(source, model)
    stored = onnx.load(str(model))
    assert (stored.ir_version, [entry.version for entry in stored.opset_import if not entry.domain]) == (8, [18])
    np.save(tmp_path / "images.npy", images)
    words = [str(tmp_path / "images.npy"), str(model), str(tmp_path / "answer.npy")]
    subprocess.run([sys.executable, "-c", RUN, *words], env=old_runtime, check=True)
    found, expected = np.load(tmp_path / "answer.npy"), predict_probabilities(str(model), images)
    assert np.abs(found - expected).max() < {"int8": 0.05, "float16": 0.002}.get(kind, 1e-5)
