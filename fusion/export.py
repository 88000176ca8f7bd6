"""One file out: `fused.onnx`, and the same as safetensors + JSON for torch. Reloaded and compared before it is done."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fusion.frozen import frozen
from fusion.model import FusedModel, combiner_like
from fusion.outputs import Floats
from fusion.session import answers
from workers.errors import ConclaveError, Corrupt
from workers.files import tensors_sha256, write_bytes, write_json
from workers.models import build, import_from
from workers.spec import MemberSpec

TOLERANCE = 1e-4


def export(
    model: FusedModel,
    specs: Sequence[MemberSpec],
    classes: Sequence[str],
    provenance: dict[str, Any],
    target: Path,
    images: np.ndarray[Any, np.dtype[np.uint8]],
    expected: Floats,
) -> float:
    """Write TARGET (.onnx), and .safetensors and .json beside it. Gives the largest difference to `expected` (n, C).

    Raises ConclaveError, with nothing written, where ONNX Runtime's output for `images` (n, S, S, 3) differs by more
    than TOLERANCE.
    """
    content = _onnx(frozen(model, images.shape[1]), images.shape[1], {"classes": json.dumps(list(classes)), **_text(provenance)})
    difference = float(np.abs(answers(content, images) - expected).max())
    if not difference <= TOLERANCE:
        raise ConclaveError(f"the exported model differs from the fusion by {difference:.2g}; nothing was written.")
    record = {
        "classes": list(classes),
        "image_size": images.shape[1],
        "members": [spec.model_dump(mode="json") for spec in specs],
        "combiner": type(model.combiner).__name__,
        "temperature": model.temperature,
        "weights_sha256": tensors_sha256(model.state_dict()),
        **provenance,
    }
    from safetensors.torch import save

    tensors = save({k: v.contiguous() for k, v in model.state_dict().items()})
    write_bytes(target.with_suffix(".safetensors"), tensors, "export")
    write_json(target.with_suffix(".json"), record)
    write_bytes(target, content, "export.onnx")
    return difference


def load(path: Path, import_paths: Sequence[str] = ()) -> FusedModel:
    """The torch form of an export, from FILE.json and FILE.safetensors beside it."""
    import_from(import_paths)
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    try:
        state: dict[str, Tensor] = load_file(path.with_suffix(".safetensors"))
    except SafetensorError as error:
        raise Corrupt(f"{path.with_suffix('.safetensors')}: not a safetensors file ({error}). Export it again.") from None
    if tensors_sha256(state) != record["weights_sha256"]:  # of another export: that of a killed one, before its .json came
        raise Corrupt(f"{path.with_suffix('.safetensors')}: does not belong to its .json. Export it again.")
    specs = [_spec(entry) for entry in record["members"]]
    members = [build(spec, len(record["classes"]), record["image_size"]) for spec in specs]
    buffers = {k.removeprefix("combiner."): v for k, v in state.items() if k.startswith("combiner.")}
    model = FusedModel(members, combiner_like(record["combiner"], buffers), record["temperature"])
    model.load_state_dict(state)
    return model.eval()


def _spec(entry: dict[str, Any]) -> MemberSpec:
    return MemberSpec.model_validate_json(json.dumps({**entry, "weights": None}))


def _text(provenance: dict[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in provenance.items()}


def _onnx(model: FusedModel, size: int, metadata: dict[str, str]) -> bytes:
    """ONNX with a dynamic batch: input `images`, output `probabilities`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            cast(nn.Module, model).eval(),
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("N")}},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    with tempfile.TemporaryDirectory() as work:
        program.save(str(Path(work, "model.onnx")))
        return Path(work, "model.onnx").read_bytes()
