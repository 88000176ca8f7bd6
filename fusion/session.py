"""ONNX Runtime, as exported models are run here: on the CPU, quiet."""

from __future__ import annotations

from typing import Any

import numpy as np

Images = np.ndarray[Any, np.dtype[np.uint8]]  # (N, S, S, 3)
AT_ONCE = 64


def session(content: bytes | str, waits_busily: bool = True) -> Any:
    """ONNX Runtime's, on the CPU, quiet. Its threads wait busily for the next call unless told otherwise: quicker for one image,
    and on the cores of whoever else computes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not waits_busily:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def answers(model: bytes | str, images: Images) -> np.ndarray[Any, np.dtype[np.float64]]:
    """ONNX Runtime's for any number of images, some at a time: (N, S, S, 3) uint8 -> (N, C)"""
    found = session(model)
    parts = [found.run(None, {"images": images[at : at + AT_ONCE]})[0] for at in range(0, len(images), AT_ONCE)]
    return np.concatenate(parts).astype(np.float64)
