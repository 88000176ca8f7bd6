"""Predict class probabilities of image files by an exported model: Pillow and ONNX Runtime, and torch where it is faster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from fusion.export.onnx_session import Images, create_session
from fusion.serving.runtimes import Probabilities, Run, load_runtime, pick_faster
from workers.data.archives import is_archive, walk
from workers.data.decoding import Decoding
from workers.data.images import Pixels, UnreadableImageError, decode, is_image
from workers.errors import UserInputError

BATCH = 256
PATIENCE_SECONDS = 15.0  # of ONNX Runtime before it pays to load torch and see which is faster
Entry = tuple[str, bytes | Path]
Row = tuple[str, str, float]


class Predictor:
    """Predicts with an exported model.

    Attributes:
        classes: The class names, in the order of the probabilities.
        size: Side of the images in pixels.

    Args:
        model: The exported model.
        runtime: One of the names in `fusion.serving.runtimes`.

    Raises:
        UserInputError: If there is no such model, or Conclave did not export it.
    """

    def __init__(self, model: Path, runtime: str = "auto") -> None:
        if not model.is_file():
            raise UserInputError(f"{model}: there is no such model file. `conclave sweep` writes one as fused.onnx.")
        try:
            self.session = create_session(str(model), spins=False)  # images are decoded on the same cores
            self.classes: list[str] = json.loads(self.session.get_modelmeta().custom_metadata_map["classes"])
            self.size = int(self.session.get_inputs()[0].shape[1])
        except Exception as error:  # ONNX Runtime has no common base class for what it raises
            raise UserInputError(f"{model}: not a model that Conclave exported ({type(error).__name__}).") from None
        self.model, self.runtime, self.seconds = model, runtime, 0.0
        self.run: Run | None = None  # until it is known which runtime is taken

    def predict_proba(self, images: Images) -> Probabilities:
        """Return the probabilities (N, C) of images (N, S, S, 3) uint8."""
        if self.run is None and self.runtime != "auto":
            self.run = load_runtime(self.runtime, self._run_onnx, self.model, images)
        elif self.run is None and self.seconds > PATIENCE_SECONDS and len(images) == BATCH:
            self.runtime, self.run = pick_faster(self._run_onnx, self.model, images)
        began = time.perf_counter()
        probabilities = (self.run or self._run_onnx)(images)
        self.seconds += time.perf_counter() - began
        return probabilities

    def _run_onnx(self, images: Images) -> Probabilities:
        return self.session.run(None, {"images": images})[0]  # type: ignore[no-any-return]

    def rows(self, paths: list[Path]) -> Iterator[Row]:
        """Yield (file, class, probability) for each class of each image. Decoding runs while the network does.

        Args:
            paths: Image files, folders or archives.

        Raises:
            UserInputError: If a file is not there, or cannot be decoded.
        """
        entries = chain.from_iterable(_images(path) for path in paths)
        with Decoding(self._pixels) as decoding:
            batch = list(islice(entries, BATCH))
            decoded = decoding.begin(batch)
            while batch:
                images = np.stack(decoded())
                following = list(islice(entries, BATCH))
                decoded = decoding.begin(following)
                for (name, _), row in zip(batch, self.predict_proba(images), strict=True):
                    yield from ((name, label, float(p)) for label, p in zip(self.classes, row, strict=True))
                batch = following

    def _pixels(self, entry: Entry) -> Pixels:
        name, content = entry
        try:
            return decode(content, self.size)
        except UnreadableImageError as error:
            raise UserInputError(f"{name}: the image {error}. Leave it out or repair it.") from None


def _images(path: Path) -> Iterator[Entry]:
    if path.is_dir() or (path.is_file() and is_archive(path)):
        yield from ((str(path / name), content) for name, content in walk(path) if is_image(name))
    elif path.is_file():
        yield str(path), path
    else:
        raise UserInputError(f"{path}: there is no such file or folder.")
