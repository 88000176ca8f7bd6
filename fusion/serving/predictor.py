"""Predict class probabilities of image files with an exported model, by ONNX Runtime or, if faster, torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from fusion.export.onnx_session import Images, create_session
from fusion.serving.entries import Entry
from fusion.serving.outputs import Prediction
from fusion.serving.runtimes import Probabilities, Run, load_runtime, pick_faster
from workers.data.archives import read
from workers.data.decoding import decode_batches
from workers.data.images import MAX_PIXELS, Pixels, UnreadableImageError, decode
from workers.errors import UserInputError

BATCH = 256
PATIENCE_SECONDS = 15.0  # time in ONNX Runtime before it pays to load torch and compare


def refuse(problem: str) -> None:
    """Refuse an image that cannot be decoded. Raises UserInputError."""
    raise UserInputError(f"{problem}. Leave it out or repair it.")


class Predictor:
    """Predicts with an exported model.

    Attributes:
        classes: The class names, in the order of the probabilities.
        size: Side of the images in pixels.

    Args:
        model: The exported model.
        max_pixels: Largest number of pixels of an image to decode.
        runtime: One of the names in `fusion.serving.runtimes`.
        trusts_code: Whether modules that the model's .json names may be imported.

    Raises:
        UserInputError: If the file does not exist, or Conclave did not export it.
    """

    def __init__(self, model: Path, runtime: str = "auto", trusts_code: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        if not model.is_file():
            raise UserInputError(f"{model}: there is no such model file. `conclave sweep` writes one as fused.onnx.")
        try:
            self.session = create_session(str(model), spins=False)  # images are decoded on the same cores
            stored = self.session.get_modelmeta().custom_metadata_map
            self.classes: list[str] = json.loads(stored["classes"])
            self.bits = int(stored["image_bits"]) if "image_bits" in stored else None
            self.interpolation: Any = stored.get("interpolation", "bilinear")
            self.size = int(self.session.get_inputs()[0].shape[1])
            answer = np.asarray(self._run_onnx(np.zeros((1, self.size, self.size, 3), np.uint8)))
            is_ours = isinstance(self.classes, list) and answer.shape == (1, len(self.classes))
        except Exception as error:  # ONNX Runtime has no common base class for its errors
            raise UserInputError(f"{model}: not a model that Conclave exported ({type(error).__name__}).") from None
        if not is_ours:
            raise UserInputError(f"{model}: not a model that Conclave exported (its outputs do not match its classes).")
        self.max_pixels = max_pixels
        self.model, self.runtime, self.trusts_code, self.seconds = model, runtime, trusts_code, 0.0
        self.run: Run | None = None  # None until the runtime is chosen

    def predict_proba(self, images: Images) -> Probabilities:
        """Return the probabilities (N, C) of images (N, S, S, 3) uint8."""
        if self.run is None and self.runtime != "auto":
            self.run = load_runtime(self.runtime, self._run_onnx, self.model, images, self.trusts_code)
        elif self.run is None and self.seconds > PATIENCE_SECONDS and len(images) == BATCH:
            self.runtime, self.run = pick_faster(self._run_onnx, self.model, images)
        began = time.perf_counter()
        probabilities = (self.run or self._run_onnx)(images)
        self.seconds += time.perf_counter() - began
        return probabilities

    def _run_onnx(self, images: Images) -> Probabilities:
        return self.session.run(None, {"images": images})[0]  # type: ignore[no-any-return]

    def predictions(self, entries: Iterable[Entry], on_unreadable: Callable[[str], None] = refuse) -> Iterator[Prediction]:
        """Yield the prediction for each image that can be decoded. Decoding runs in parallel with the network.

        Args:
            entries: The images.
            on_unreadable: Called with a message for each image that cannot be decoded. It may raise.

        Raises:
            UserInputError: If an image cannot be decoded and `on_unreadable` is the default.
        """
        with closing(decode_batches(self._pixels, iter(entries), BATCH)) as batches:
            for batch in batches:
                for _, result in batch:
                    if isinstance(result, str):
                        on_unreadable(result)
                decoded = [(entry, result) for entry, result in batch if not isinstance(result, str)]
                probabilities = self.predict_proba(np.stack([pixels for _, pixels in decoded])) if decoded else ()
                for (entry, _), row in zip(decoded, probabilities, strict=True):
                    yield Prediction(entry.file, entry.name, row)

    def _pixels(self, entry: Entry) -> Pixels | str:
        try:
            return decode(read(entry.content), self.size, self.bits, self.max_pixels, self.interpolation)
        except UnreadableImageError as error:
            return f"{entry.file}: the image {error}"
