"""An exported model in 8-bit integers: a quarter of the memory traffic, for what it costs in accuracy, which is said.

ONNX Runtime's static quantization: convolutions and matrix products in integers, with ranges seen on images that nobody trained
on; the classifiers' last layers and whatever combines them stay in float32.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.outputs import Floats, Labels
from fusion.session import AT_ONCE, Images, answers
from workers.files import write_bytes

SEEN = 512  # images whose activations say the ranges
HEAVY = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Loss:
    """What the integers cost on so many rows: shares of right answers, before and after, and of answers that changed."""

    rows: int
    before: float
    after: float
    changed: float

    def __str__(self) -> str:
        points = f"{100 * (self.after - self.before):+.2f} points against float32"
        return f"{self.after:.2%} of {self.rows:,} test rows, {points}; {self.changed:.2%} of the answers changed"


def quantize(source: Path, target: Path, seen: Images) -> None:
    """Write TARGET.onnx, the integer form of SOURCE.onnx, its metadata kept. `seen` (n, S, S, 3): rows of *fuse*."""
    from onnxruntime import quantization

    logging.getLogger("root").setLevel(logging.ERROR)  # it recommends a step that finds nothing to do here
    with tempfile.TemporaryDirectory() as work:
        made = Path(work, "made.onnx")
        quantization.quantize_static(
            str(source),
            str(made),
            _Reader(seen[:SEEN]),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(HEAVY),
            nodes_to_exclude=_light(source),
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
        write_bytes(target, made.read_bytes(), "export.onnx")


def loss(source: Path, target: Path, images: Images, labels: Labels) -> Loss:
    """Of the integer form TARGET against SOURCE, on rows that nothing was chosen by."""
    before, after = answers(str(source), images), answers(str(target), images)
    return Loss(len(labels), _right(before, labels), _right(after, labels), float((before.argmax(1) != after.argmax(1)).mean()))


def _right(found: Floats, labels: Labels) -> float:
    return float((found.argmax(1) == labels).mean())


def _light(source: Path) -> list[str]:
    """Heads and combiners: matrix products that give, or take, as many values as there are classes."""
    import onnx

    model = onnx.load(str(source))
    classes = len(json.loads(next(entry.value for entry in model.metadata_props if entry.key == "classes")))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    products = (node for node in model.graph.node if node.op_type in ("Gemm", "MatMul"))
    return [node.name for node in products if any(classes in shapes.get(name, ()) for name in node.input)]


class _Reader:
    """What quantization asks for its images."""

    def __init__(self, images: Images) -> None:
        self.batches: Iterator[dict[str, Any]] = ({"images": images[at : at + AT_ONCE]} for at in range(0, len(images), AT_ONCE))

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)
