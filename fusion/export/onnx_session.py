"""Run exported models with ONNX Runtime, on the CPU and without its log messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Images = np.ndarray[Any, np.dtype[np.uint8]]  # (N, S, S, 3)
BATCH = 64


def create_session(model: bytes | str, spins: bool = True) -> Any:
    """Create an ONNX Runtime session.

    Args:
        model: The model's content, or its path.
        spins: Whether its threads busy-wait for the next call. That is faster for one image, but slows down other work on the
            same cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not spins:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def predict_probabilities(model: bytes | str, images: Images) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the probabilities (N, C) of any number of images (N, S, S, 3), in batches."""
    session = create_session(model)
    parts = [session.run(None, {"images": images[start : start + BATCH]})[0] for start in range(0, len(images), BATCH)]
    return np.concatenate(parts).astype(np.float64)


def torch_form(model: Path) -> tuple[Path, Path]:
    """Return the paths of the .json and the .safetensors with the torch form of an exported model."""
    stem = model.name.removesuffix(".onnx")
    return model.with_name(f"{stem}.json"), model.with_name(f"{stem}.safetensors")
