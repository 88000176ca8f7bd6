"""Class probabilities of image files by an exported model: Pillow and ONNX Runtime, and torch where it is faster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from fusion.runtimes import Probabilities, Run, faster, named
from fusion.session import Images, session
from workers.archives import is_archive, walk
from workers.decoding import Decoding
from workers.errors import Rejected
from workers.images import Pixels, Unreadable, decode, is_image

BATCH = 256
PATIENCE = 15.0  # seconds that ONNX Runtime runs before it is worth while to load torch and see which is faster
Entry = tuple[str, bytes | Path]
Row = tuple[str, str, float]


class Predictor:
    """An exported `fused.onnx`: `classes`, and rows of (file, class, probability), by the `runtime` of that name."""

    def __init__(self, model: Path, runtime: str = "auto") -> None:
        if not model.is_file():
            raise Rejected(f"{model}: there is no such model file. `conclave sweep` writes one as fused.onnx.")
        try:
            self.session = session(str(model), waits_busily=False)  # images are decoded on the same cores
            self.classes: list[str] = json.loads(self.session.get_modelmeta().custom_metadata_map["classes"])
            self.size = int(self.session.get_inputs()[0].shape[1])
        except Exception as error:
            raise Rejected(f"{model}: not a model that Conclave exported ({type(error).__name__}).") from None
        self.model, self.runtime, self.spent = model, runtime, 0.0
        self.run: Run | None = None  # until it is known what this runtime comes to

    def answers(self, images: Images) -> Probabilities:
        """(N, S, S, 3) uint8 -> (N, C)"""
        if self.run is None and self.runtime != "auto":
            self.run = named(self.runtime, self._onnx, self.model, images)
        elif self.run is None and self.spent > PATIENCE and len(images) == BATCH:
            self.runtime, self.run = faster(self._onnx, self.model, images)
        began = time.perf_counter()
        found = (self.run or self._onnx)(images)
        self.spent += time.perf_counter() - began
        return found

    def _onnx(self, images: Images) -> Probabilities:
        return self.session.run(None, {"images": images})[0]  # type: ignore[no-any-return]

    def rows(self, paths: list[Path]) -> Iterator[Row]:
        """For each image, its classes with their probabilities; decoding runs while the network does."""
        entries = chain.from_iterable(_images(path) for path in paths)
        with Decoding(self._pixels) as decoding:
            batch = list(islice(entries, BATCH))
            decoded = decoding.begin(batch)
            while batch:
                images = np.stack(decoded())
                following = list(islice(entries, BATCH))
                decoded = decoding.begin(following)
                for (name, _), row in zip(batch, self.answers(images), strict=True):
                    yield from ((name, label, float(p)) for label, p in zip(self.classes, row, strict=True))
                batch = following

    def _pixels(self, entry: Entry) -> Pixels:
        name, content = entry
        try:
            return decode(content, self.size)
        except Unreadable as error:
            raise Rejected(f"{name}: the image {error}. Leave it out or repair it.") from None


def _images(path: Path) -> Iterator[Entry]:
    if path.is_dir() or (path.is_file() and is_archive(path)):
        yield from ((str(path / name), content) for name, content in walk(path) if is_image(name))
    elif path.is_file():
        yield str(path), path
    else:
        raise Rejected(f"{path}: there is no such file or folder.")
