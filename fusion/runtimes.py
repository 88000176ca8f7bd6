"""What runs an exported model: ONNX Runtime, or torch where the model's torch form lies beside it.

Which is faster depends on the batch and on the processor: at one image ONNX Runtime is, at many torch may be, by far where the
processor multiplies bfloat16. `benchmarks/inference.py` measures them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fusion.session import Images
from workers.errors import ConclaveError, Rejected

Probabilities = np.ndarray[Any, np.dtype[np.float32]]  # (N, C)
Run = Callable[[Images], Probabilities]

# How far a runtime's probabilities may be from ONNX Runtime's; checked on the first batch that it answers.
TOLERANCES = {"torch": 1e-4, "torch-bfloat16": 0.03}
NAMES = ("auto", "onnx", *TOLERANCES)


def named(name: str, onnx: Run, model: Path, images: Images) -> Run:
    """The way that was asked for, for such batches. Raises Rejected where there is no torch form, or it answers otherwise."""
    if name == "onnx":
        return onnx
    for form in (model.with_suffix(".json"), model.with_suffix(".safetensors")):
        if not form.is_file():
            raise Rejected(f"--runtime {name}: needs {form} beside the model; `conclave export` writes it.")
    try:
        run = in_torch(model, images.shape[1], name == "torch-bfloat16")
    except (ConclaveError, ImportError, OSError, ValueError, KeyError) as error:  # damaged, or of another version
        raise Rejected(f"--runtime {name}: torch can't run this model ({error}). Use --runtime onnx.") from None
    differs = _difference(run(images), onnx(images))
    if not differs <= TOLERANCES[name]:
        raise Rejected(
            f"--runtime {name}: differs by {differs:.2g} from the model, at most {TOLERANCES[name]:g} is allowed. Use onnx."
        )
    return run


def faster(onnx: Run, model: Path, images: Images) -> tuple[str, Run]:
    """Of ONNX Runtime and torch in float32, whose answers are within 1e-4 or it is not taken, the one that is faster on
    this batch. Never bfloat16: nobody's answers shall depend on what was timed."""
    try:
        run = named("torch", onnx, model, images)
    except Rejected:  # no torch form that would answer the same
        return "onnx", onnx
    return ("torch", run) if _seconds(run, images) < _seconds(onnx, images) else ("onnx", onnx)


def in_torch(model: Path, size: int, bfloat16: bool) -> Run:
    """The torch form of MODEL.onnx, folded, in channels_last."""
    import torch

    from fusion.export import load  # imports torch too: only once it is asked for
    from fusion.frozen import frozen

    fused = frozen(load(model), size).to(memory_format=torch.channels_last)

    def run(images: Images) -> Probabilities:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return fused(torch.from_numpy(images)).float().numpy()  # type: ignore[no-any-return]

    return run


def _difference(ours: Probabilities, theirs: Probabilities) -> float:
    return float(np.abs(ours - theirs).max())


def _seconds(run: Run, images: Images) -> float:
    began = time.perf_counter()
    run(images)
    return time.perf_counter() - began
