"""Serve the fused model in MLflow: arrays or image files in, probabilities out, with ONNX Runtime and no pickle.

MLflow keeps a copy of this module and of the decoder with the model, so the model is served without Conclave, and images are
decoded as for training. Imports no torch.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException

from ..data.images import Pixels, UnreadableImageError, decode, resize

BATCH = 64
EXPECTED = "Send images of (N, height, width, 3) with values from 0 to 255, or image files (JPEG, PNG and so on) in base64."


class ServedModel:
    """A fused model behind MLflow's pyfunc interface.

    Args:
        path: The ONNX file.
    """

    def __init__(self, path: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.size = int(self.session.get_inputs()[0].shape[1])
        stored = self.session.get_modelmeta().custom_metadata_map
        self.classes = json.loads(stored["classes"])
        self.bits = int(stored["image_bits"]) if "image_bits" in stored else None
        self.interpolation: Any = stored.get("interpolation", "bilinear")

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return {"probabilities": (N, C) float32, "labels": N class names} for images.

        The model's metadata in MLmodel gives the class of each probability under `classes`.

        Args:
            model_input: (N, H, W, 3) numbers from 0 to 255; or N image files as bytes or in base64, in a list, an array or a
                table of one column. Either may be the only value of a dictionary, under any key.
            params: Not used.

        Raises:
            MlflowException: If the images cannot be used. The message says why.
        """
        images = [self._image(value, i) for i, value in enumerate(_rows(model_input))]
        starts = range(0, len(images), BATCH)
        parts = [self.session.run(None, {"images": np.stack(images[start : start + BATCH])})[0] for start in starts]
        probabilities = np.concatenate(parts)
        return {"probabilities": probabilities, "labels": np.array(self.classes)[probabilities.argmax(1)]}

    def _image(self, value: Any, number: int) -> Pixels:
        """Convert an image to the network's input format: (S, S, 3) uint8."""
        if isinstance(value, str | bytes):
            try:
                content = value if isinstance(value, bytes) else _from_base64(value, number)
                return decode(content, self.size, self.bits, interpolation=self.interpolation)
            except UnreadableImageError as error:
                raise _refusal(f"Image {number} {error}.") from None
        return resize(np.ascontiguousarray(value), self.size, self.interpolation)


def _rows(given: Any) -> Any:
    """Convert the input to an array (N, H, W, 3) uint8, or to a list of image files."""
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # a pandas table
        given = {str(name): given[name].tolist() for name in given.columns}
    if isinstance(given, Mapping):
        if len(given) != 1:
            raise _refusal(f"{len(given)} inputs were sent ({', '.join(map(str, given))}), and one is expected. {EXPECTED}")
        return _rows(next(iter(given.values())))
    values = [given] if isinstance(given, str | bytes) else given
    try:
        array = np.asarray(values, dtype=None if not _holds_files(values) else object)
    except ValueError:
        raise _refusal(f"The images differ in shape. {EXPECTED}") from None
    if array.dtype == object or array.dtype.kind in "US":
        flat = array.reshape(-1).tolist()
        if flat and all(isinstance(value, str | bytes) for value in flat):
            return flat
        raise _refusal(f"The input is neither numbers nor image files. {EXPECTED}")
    return _eight_bits(array)


def _holds_files(values: Any) -> bool:
    """Return whether a list contains bytes, which NumPy would strip of trailing zeros."""
    return isinstance(values, list | tuple) and any(isinstance(value, bytes) for value in values)


def _eight_bits(array: np.ndarray[Any, Any]) -> Pixels:
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[3] != 3 or array.size == 0:
        raise _refusal(f"An array of the shape {array.shape} was sent. {EXPECTED}")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise _refusal(f"An array of {array.dtype} was sent. {EXPECTED}")
    lowest, largest = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and largest <= 1:
        raise _refusal(
            f"The largest value is {largest:g}: the images seem to be scaled to 1, and this model expects 0 to 255. "
            "Multiply them by 255, or send them as uint8."
        )
    if not (lowest >= 0 and largest <= 255):  # NaN compares false
        raise _refusal(f"The values reach from {lowest:g} to {largest:g}. {EXPECTED}")
    return np.asarray(np.rint(array), dtype=np.uint8)


def _from_base64(text: str, number: int) -> bytes:
    """Decode a base64 file, with or without the prefix of a data URL."""
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise _refusal(f"Image {number} is not base64. {EXPECTED}") from None


def _refusal(text: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(text)


def _load_pyfunc(path: str) -> ServedModel:
    """Load the model for MLflow, which calls this by its name."""
    return ServedModel(path)
