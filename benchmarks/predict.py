"""`conclave predict` on 10,000 files against its two halves: `python -m benchmarks.predict [ARCHIVE]`; results/predict.json.

ARCHIVE holds JPEG files (the real CIFAR-10, for one); without one, 10,000 pictures of smooth noise are made. Halves: decoding
all files as it does, and running the model on images that are decoded already. Whatever overlaps best takes as long as the
slower one, where the two don't compete for the same cores; on a CPU they do, so their sum bounds it too.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks.inference import COUNT, settled, specs, write
from benchmarks.machine import describe, write_result
from benchmarks.train import SIDE
from fusion.export.fused_model import Combiner, FusedModel
from fusion.methods.vote import Vote
from fusion.serving.entries import list_entries
from fusion.serving.predictor import BATCH, Predictor
from workers.data.archives import list_files, read
from workers.data.decoding import decode_batches
from workers.data.images import decode, is_image

FILES, ROUNDS = 10_000, 3


def files(archive: Path | None, folder: Path) -> list[Path]:
    """So many JPEG files in a folder."""
    pictures = _of(archive) if archive else _made()
    paths = []
    for number, content in zip(range(FILES), pictures, strict=False):
        paths.append(folder / f"{number:05}.jpg")
        paths[-1].write_bytes(content)
    return paths


def _of(archive: Path) -> list[bytes]:
    with ExitStack() as open_files:
        images = (read(content) for name, content in list_files(archive, open_files) if is_image(name))
        return [c if isinstance(c, bytes) else c.read_bytes() for c, _ in zip(images, range(FILES), strict=False)]


def _made() -> list[bytes]:
    generator, images = np.random.default_rng(0), []
    for _ in range(FILES):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        out = io.BytesIO()
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    return images


def _model(folder: Path) -> Path:
    """Three ResNet18 in one file."""
    folder.mkdir()
    mean = Combiner(Vote, {"weights": torch.full((COUNT,), 1 / COUNT)})
    fused = FusedModel([settled(spec) for spec in specs()], mean, 1.0).eval()
    write(fused, specs(), folder / "fused.onnx")
    return folder / "fused.onnx"


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        paths = files(Path(sys.argv[1]) if len(sys.argv) > 1 else None, Path(work))
        predictor = Predictor(_model(Path(work) / "model"))
        images = np.stack([decode(path, SIDE) for path in paths])

        def decoding() -> None:
            list(decode_batches(partial(decode, size=SIDE), iter(paths), len(paths)))

        def running() -> None:
            for at in range(0, len(images), BATCH):
                predictor.session.run(None, {"images": images[at : at + BATCH]})

        def predicting() -> None:
            assert sum(1 for _ in predictor.predictions(list_entries(paths, ExitStack(), print))) == len(paths)

        legs: dict[str, Callable[[], None]] = {"decoding": decoding, "running": running, "predict": predicting}
        times: dict[str, list[float]] = {name: [] for name in legs}
        for _ in range(ROUNDS):
            for name, leg in legs.items():
                began = time.perf_counter()
                leg()
                times[name].append(time.perf_counter() - began)
    seconds = {name: median(values) for name, values in times.items()}
    result = {"files": len(paths), "members": COUNT, "seconds": seconds, "goal": 1.2}
    result["over_the_slower"] = seconds["predict"] / max(seconds["decoding"], seconds["running"])
    result["over_the_sum"] = seconds["predict"] / (seconds["decoding"] + seconds["running"])
    write_result("predict", "python -m benchmarks.predict", result)
    print(json.dumps(result, indent=1))
    print(json.dumps(describe()))


if __name__ == "__main__":
    main()
