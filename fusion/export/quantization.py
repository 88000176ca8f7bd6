"""Write an exported model in fewer bits, with a measured accuracy loss. Both conversions are ONNX Runtime's own.

In `int8`, convolutions and matrix products run in integers, with ranges calibrated on images that no member trained on. The
members' heads and the combiner stay in float32. In `float16`, everything is in half precision, as GPUs compute fastest.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusion.export.onnx_session import BATCH, Images, predict_probabilities
from fusion.predictions import Floats, Labels
from workers.storage.files import write_bytes

CALIBRATION_ROWS = 512  # images to calibrate the ranges on
QUANTIZED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class ConversionLoss:
    """Accuracy before and after a conversion.

    Attributes:
        rows: Number of rows measured.
        before: Share of right answers in float32.
        after: Share of right answers in fewer bits.
        changed: Share of answers that changed.
    """

    rows: int
    before: float
    after: float
    changed: float

    def __str__(self) -> str:
        """Return the loss in words."""
        points = f"{100 * (self.after - self.before):+.2f} points against float32"
        return f"{self.after:.2%} of {self.rows:,} test rows, {points}; {self.changed:.2%} of the answers changed"


def quantize(source: Path, target: Path, images: Images) -> None:
    """Quantize an exported model, keeping its metadata.

    Args:
        source: The exported model.
        target: The file to write.
        images: (n, S, S, 3) uint8, rows of *fuse* to calibrate the ranges on.
    """
    from onnxruntime import quantization

    logging.getLogger("root").setLevel(logging.ERROR)  # it recommends a step that has no effect here
    with tempfile.TemporaryDirectory() as work:
        result = Path(work, "model.onnx")
        quantization.quantize_static(
            str(source),
            str(result),
            _Reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=_last_layers(source),
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
        write_bytes(target, result.read_bytes(), "export.onnx")


def to_float16(source: Path, target: Path) -> None:
    """Write an exported model in half precision, with the same inputs, outputs and metadata.

    Args:
        source: The exported model.
        target: The file to write.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of each weight that is too small for half precision
        write_bytes(
            target, convert_float_to_float16(onnx.load(str(source)), keep_io_types=True).SerializeToString(), "export.onnx"
        )


def measure_loss(source: Path, target: Path, images: Images, labels: Labels) -> ConversionLoss:
    """Compare a converted model with its source, on rows that no choice was based on.

    Args:
        source: The exported model.
        target: The converted model.
        images: (n, S, S, 3) uint8.
        labels: (n,).
    """
    before, after = predict_probabilities(str(source), images), predict_probabilities(str(target), images)
    changed = float((before.argmax(1) != after.argmax(1)).mean())
    return ConversionLoss(len(labels), _accuracy(before, labels), _accuracy(after, labels), changed)


def _accuracy(probabilities: Floats, labels: Labels) -> float:
    return float((probabilities.argmax(1) == labels).mean())


def _last_layers(source: Path) -> list[str]:
    """Return the node names of heads and combiners: matrix products with the number of classes as a dimension."""
    import onnx

    model = onnx.load(str(source))
    classes = len(json.loads(next(entry.value for entry in model.metadata_props if entry.key == "classes")))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    products = (node for node in model.graph.node if node.op_type in ("Gemm", "MatMul"))
    return [node.name for node in products if any(classes in shapes.get(name, ()) for name in node.input)]


class _Reader:
    """Calibration data reader of ONNX Runtime: batches of images."""

    def __init__(self, images: Images) -> None:
        starts = range(0, len(images), BATCH)
        self.batches: Iterator[dict[str, Images]] = ({"images": images[start : start + BATCH]} for start in starts)

    def get_next(self) -> dict[str, Images] | None:
        return next(self.batches, None)
