"""Export a fused model to ONNX, and to safetensors with JSON for torch, after checking its outputs."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fusion.export.freezing import freeze_for_inference
from fusion.export.fused_model import FusedModel, restore_combiner
from fusion.export.onnx_session import Images, predict_probabilities, torch_form
from fusion.export.stitching import convert
from fusion.predictions import Floats
from workers.config.own_code import import_from
from workers.config.specs import Interpolation, MemberRecord, MemberSpec
from workers.errors import ConclaveError, CorruptFileError
from workers.models.build import build
from workers.storage.files import tensors_sha256, write_bytes, write_json

TOLERANCE = 1e-4


@dataclass(frozen=True)
class ModelCard:
    """Description stored in an exported model.

    Attributes:
        specs: Specification of each network in the model.
        classes: The class names, in the order of the probabilities.
        provenance: Origin of the model, as JSON values.
        level: Level of the prediction sets, which become additional outputs; None to output only probabilities.
        coverage: Share of new images whose class the prediction sets hold.
        interpolation: How training images were resized.
        image_bits: Depth of the training images that had more than 8 bits; 8 if there were none.
    """

    specs: Sequence[MemberSpec]
    classes: Sequence[str]
    provenance: Mapping[str, Any]
    level: float | None = None
    coverage: float | None = None
    image_bits: int = 8
    interpolation: Interpolation = "bilinear"

    @property
    def properties(self) -> dict[str, Any]:
        """What both forms of the model store beside the classes, as JSON values."""
        decoding: dict[str, Any] = {"image_bits": self.image_bits} if self.image_bits > 8 else {}
        decoding |= {"interpolation": self.interpolation} if self.interpolation != "bilinear" else {}
        sets = {} if self.level is None else {"set_level": self.level, "set_coverage": self.coverage}
        return {**self.provenance, **decoding, **sets}


def export_model(model: FusedModel, card: ModelCard, target: Path, images: Images, expected: Floats) -> float:
    """Write a model to `target` (.onnx), and its torch form to the .safetensors and .json beside it.

    Args:
        model: The fused model.
        card: Description to store in the files.
        target: The ONNX file.
        images: (n, S, S, 3) uint8 to check the model with.
        expected: (n, C) probabilities of the fusion for these images.

    Returns:
        Largest difference between ONNX Runtime's probabilities and the expected ones.

    Raises:
        ConclaveError: If the difference exceeds TOLERANCE. Nothing is written then.
    """
    size = images.shape[1]
    frozen, plain = freeze_for_inference(model, size), copy.deepcopy(model).eval()
    frozen.level = plain.level = card.level
    # Custom networks of one kind may differ in more than weights, and folding costs more rounding than some heads bear.
    for converted, with_copies in ((frozen, True), (frozen, False), (plain, False)):
        content = _content(convert(converted, size, with_copies), _metadata(card))
        difference = float(np.abs(predict_probabilities(content, images) - expected).max())
        if difference <= TOLERANCE:
            break
    else:
        raise ConclaveError(f"the exported model differs from the fusion by {difference:.2g}; nothing was written.")
    record = {
        "classes": list(card.classes),
        "image_size": size,
        "members": [spec.model_dump(mode="json") for spec in card.specs],
        "combiner": model.combiner.method.stored_name,
        "temperature": model.temperature,
        "weights_sha256": tensors_sha256(model.state_dict()),
        **({"flips": True} if model.flips else {}),
        **card.properties,
    }
    tensors = save({k: v.contiguous() for k, v in model.state_dict().items()})
    record_file, tensors_file = torch_form(target)
    write_bytes(tensors_file, tensors, "export")
    write_json(record_file, record)
    write_bytes(target, content, "export.onnx")
    return difference


def load_model(path: Path, import_paths: Sequence[str] = ()) -> FusedModel:
    """Load the torch form of an exported model, from the .json and .safetensors beside FILE.onnx.

    Args:
        path: The exported file.
        import_paths: Folders from which custom networks are imported.

    Raises:
        CorruptFileError: If the files are damaged, or come from different exports.
    """
    import_from(import_paths)
    record_file, tensors_file = torch_form(path)
    record = json.loads(record_file.read_text(encoding="utf-8"))
    try:
        state: dict[str, Tensor] = load_file(tensors_file)
    except SafetensorError as error:
        raise CorruptFileError(f"{tensors_file}: not a safetensors file ({error}). Export it again.") from None
    if tensors_sha256(state) != record["weights_sha256"]:  # a later export was killed before it wrote its .json
        raise CorruptFileError(f"{tensors_file}: does not belong to its .json. Export it again.")
    specs = [MemberRecord.model_validate_json(json.dumps({**entry, "weights": None})) for entry in record["members"]]
    members = [build(spec, len(record["classes"]), record["image_size"]) for spec in specs]
    buffers = {k.removeprefix("combiner."): v for k, v in state.items() if k.startswith("combiner.")}
    combiner = restore_combiner(record["combiner"], buffers)
    model = FusedModel(members, combiner, record["temperature"], record.get("flips", False))
    model.load_state_dict(state)
    return model.eval()


def _metadata(card: ModelCard) -> dict[str, str]:
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in card.properties.items()}
    return {"classes": json.dumps(list(card.classes)), **texts}


def _content(model: ir.Model, metadata: Mapping[str, str]) -> bytes:
    """Return the content of a converted model's ONNX file."""
    model.metadata_props.update(metadata)
    _forget_sources(model)
    with tempfile.TemporaryDirectory() as work:
        ir.save(model, Path(work, "model.onnx"))
        return Path(work, "model.onnx").read_bytes()


def _forget_sources(model: ir.Model) -> None:
    """Remove torch's metadata from the graph: it holds file paths of the exporting machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
