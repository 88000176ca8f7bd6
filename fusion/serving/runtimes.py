"""Choose the runtime for an exported model: ONNX Runtime, or torch if the model's torch form is beside it.

The faster runtime depends on the batch and the processor. ONNX Runtime is faster for one image. Torch may be faster for many
images, by far on processors with bfloat16 multiplication. `benchmarks/inference.py` measures both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fusion.export.onnx_session import Images, torch_form
from workers.errors import ConclaveError, UserInputError

Probabilities = np.ndarray[Any, np.dtype[np.float32]]  # (N, C)
Run = Callable[[Images], Probabilities]

# Largest allowed difference from ONNX Runtime's probabilities, checked on a runtime's first batch.
TOLERANCES = {"torch": 1e-4, "torch-bfloat16": 0.03}
NAMES = ("auto", "onnx", *TOLERANCES)


def load_runtime(name: str, onnx: Run, model: Path, images: Images, trusts_code: bool = False) -> Run:
    """Load a runtime by name.

    Args:
        name: One of NAMES, except for "auto".
        onnx: Runs the model by ONNX Runtime.
        model: The exported model.
        images: A batch to check the runtime with.
        trusts_code: Whether modules that the model's .json names may be imported.

    Raises:
        UserInputError: If the torch form is missing, gives different answers, or names a module that is not trusted.
    """
    if name == "onnx":
        return onnx
    forms = torch_form(model)
    for form in forms:
        if not form.is_file():
            raise UserInputError(f"--runtime {name}: needs {form} beside the model; `conclave export` writes it.")
    try:
        modules = named_modules(forms[0])
    except (ValueError, LookupError, TypeError):
        raise UserInputError(
            f"--runtime {name}: torch can't run this model ({forms[0]} is damaged). Use --runtime onnx."
        ) from None
    if modules and not trusts_code:
        raise UserInputError(
            f"--runtime {name}: {forms[0]} names code of its own ({', '.join(modules)}), which would be run. If you trust it: "
            f"conclave predict --runtime {name} --trust-code {model} ... ; --runtime onnx needs none of it."
        )
    try:
        run = torch_runtime(model, images.shape[1], name == "torch-bfloat16")
    except (ConclaveError, ImportError, OSError, ValueError, KeyError) as error:  # damaged, or from another version
        raise UserInputError(f"--runtime {name}: torch can't run this model ({error}). Use --runtime onnx.") from None
    difference = float(np.abs(run(images) - onnx(images)).max())
    if not difference <= TOLERANCES[name]:
        raise UserInputError(
            f"--runtime {name}: differs by {difference:.2g} from the model, at most {TOLERANCES[name]:g} is allowed. Use onnx."
        )
    return run


def pick_faster(onnx: Run, model: Path, images: Images) -> tuple[str, Run]:
    """Return the faster of ONNX Runtime and torch in float32 on this batch, and its name.

    Torch is only used if its answers differ by at most 1e-4, and never in bfloat16: answers must not depend on timing.
    """
    try:
        run = load_runtime("torch", onnx, model, images)
    except UserInputError:  # no torch form that would answer the same
        return "onnx", onnx
    return ("torch", run) if _seconds(run, images) < _seconds(onnx, images) else ("onnx", onnx)


def torch_runtime(model: Path, size: int, bfloat16: bool) -> Run:
    """Return a function that runs the torch form of an exported model, frozen, in channels_last.

    Args:
        model: The exported model.
        size: Side of the images in pixels.
        bfloat16: Whether to compute in bfloat16.
    """
    import torch

    from fusion.export.freezing import freeze_for_inference
    from fusion.export.onnx_export import load_model

    fused = freeze_for_inference(load_model(model), size).to(memory_format=torch.channels_last)

    def run(images: Images) -> Probabilities:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return fused(torch.from_numpy(images)).float().numpy()  # type: ignore[no-any-return]

    return run


def named_modules(record: Path) -> list[str]:
    """Return the custom networks in an exported model's .json, as package.module:name. Raises if it is damaged."""
    from workers.config.extensions import is_reference

    members = json.loads(record.read_text(encoding="utf-8"))["members"]
    return sorted({str(member["arch"]) for member in members if is_reference(str(member["arch"]))})


def _seconds(run: Run, images: Images) -> float:
    began = time.perf_counter()
    run(images)
    return time.perf_counter() - began
