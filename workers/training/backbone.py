"""Compute the features of a frozen backbone once for each image, and keep them in the home by the image's content.

    HOME/features/BACKBONE/DIGEST.safetensors    features of up to SEGMENT_ROWS images; DIGEST is that of the file

BACKBONE hashes what the features depend on: the network's answer to a fixed image on this machine, its weights, the views. So a
training that is resumed, a fold, another head and another sweep with the same images compute nothing again.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from workers.config.extensions import Augmentation
from workers.config.job import derive_seed
from workers.config.specs import MemberSpec
from workers.data.store import Store
from workers.diagnostics.callback import TrainingCallback
from workers.errors import TrainingStopped
from workers.models.network import Network
from workers.storage.files import tensors_sha256, write_bytes
from workers.storage.training_folder import wait_for_lock
from workers.training.augmentation import make_augmentations, to_float, transform

FOLDER = "features"
BATCH = 32  # images of each pass; the last batch is filled up, because kernels may round otherwise for other sizes
SEGMENT_ROWS = 256  # images whose features are kept at once: at most so many are computed again after a kill
AGREEMENT = 1e-4  # largest difference between two runtimes, relative to the largest feature

Digests = NDArray[np.uint64]
Compute = Callable[[Tensor], Tensor]  # (BATCH, 3, S, S) float32 in [0, 1] -> (BATCH, D) float32 on the CPU


@dataclass(frozen=True)
class FrozenBackbone:
    """The backbone of a network, which computes features.

    Attributes:
        network: The network, whose head doesn't matter.
        recipe: The member: its augmentations make the views of an image.
        home: The home that keeps the features.
        device: The device to compute on.
        threads: Number of threads on a CPU.
    """

    network: Network
    recipe: MemberSpec
    home: Path
    device: torch.device
    threads: int

    def features(self, store: Store, callback: TrainingCallback) -> Tensor:
        """Return the features of all images of a store, (N, views, D) float32. The first view is the image itself.

        Args:
            store: The packed data.
            callback: Follows the computing; may ask for a stop.

        Raises:
            TrainingStopped: If asked to stop. What is computed is kept.
        """
        folder = self.home / FOLDER / self._key(store.size)
        folder.mkdir(parents=True, exist_ok=True)
        digests: Digests = store.row_arrays["digests"]
        wanted = [bytes(digest) for digest in digests]
        with wait_for_lock(folder / ".lock", callback, "another training computes the same features"):
            known = _read_all(folder)
            missing = {digest: row for row, digest in enumerate(wanted) if digest not in known}
            if missing:
                compute = self._fastest(store.size)
                for part in _parts(list(missing.values()), SEGMENT_ROWS):
                    computed = self._computed(store, part, compute, callback)
                    _write(folder, digests[part], computed)
                    known |= dict(zip((wanted[row] for row in part), computed, strict=True))
        return torch.stack([known[digest] for digest in wanted])

    @torch.inference_mode()
    def _key(self, size: int) -> str:
        """Return a name for the backbone: equal for the same function of images on this kind of machine."""
        example = torch.linspace(0, 1, 3 * size * size).reshape(1, 3, size, size)
        answer = self.network.eval().cpu().features(example)
        settings = [size, self.recipe.views, self.threads, str(self.device.type), torch.__version__]
        if self.recipe.views > 1:
            settings += [augment.model_dump() for augment in self.recipe.augment]
        digest = hashlib.sha256(json.dumps(settings).encode() + answer.numpy().tobytes())
        digest.update(tensors_sha256(dict(self.network.trunk.state_dict())).encode())
        return digest.hexdigest()[:20]

    def _computed(self, store: Store, rows: Sequence[int], compute: Compute, callback: TrainingCallback) -> Tensor:
        """Return the features of rows, (n, views, D)."""
        augmentations = make_augmentations(self.recipe.augment) if self.recipe.views > 1 else []
        pairs = [(row, view) for row in rows for view in range(self.recipe.views)]
        found = []
        for batch in _parts(pairs, BATCH):
            if callback.should_stop():
                raise TrainingStopped("stopped while the features of its backbone were computed; what is computed is kept")
            seen = [_view(store, row, view, augmentations) for row, view in batch]
            full = torch.cat([*seen, *[seen[-1]] * (BATCH - len(seen))])
            found.append(compute(full)[: len(batch)])
            callback.on_step_end()
        return torch.cat(found).reshape(len(rows), self.recipe.views, -1)

    def _fastest(self, size: int) -> Compute:
        """Return the fastest way to compute features on this device: ONNX Runtime on a CPU, if it gives the same ones."""
        network = self.network.eval().to(self.device)

        @torch.inference_mode()
        def by_torch(x: Tensor) -> Tensor:
            return network.features(x.to(self.device)).float().cpu()

        if self.device.type != "cpu":
            return by_torch
        try:
            by_onnx = _onnx_features(network, size, self.threads)
            example = torch.rand(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
            expected = by_torch(example)
            is_same = torch.allclose(by_onnx(example), expected, rtol=0, atol=AGREEMENT * float(expected.abs().max()))
        except Exception:  # a custom network may raise anything when traced
            return by_torch
        return by_onnx if is_same else by_torch


class _Features(torch.nn.Module):
    """The features of a network, as a module."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


def _onnx_features(network: Network, size: int, threads: int) -> Compute:
    """Return the features of a network by ONNX Runtime, on the CPU."""
    import onnxruntime

    example = torch.zeros(BATCH, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(_Features(network).eval(), (example,), dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def compute(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])

    return compute


def _view(store: Store, row: int, view: int, augmentations: Sequence[Augmentation]) -> Tensor:
    """Return a view of an image, (1, 3, S, S): the image itself, or augmented by random numbers of its own."""
    image = torch.from_numpy(np.array(store.images[row]))[None]
    if view == 0:
        return to_float(image)
    digest = bytes(store.row_arrays["digests"][row]).hex()
    return transform(image, augmentations, torch.Generator().manual_seed(derive_seed(digest, "view", view)))


def _parts(items: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _write(folder: Path, digests: Digests, features: Tensor) -> None:
    content = save({"digests": torch.from_numpy(digests.view(np.int64).copy()), "features": features.contiguous()})
    write_bytes(folder / f"{hashlib.sha256(content).hexdigest()[:20]}.safetensors", content, "features")


def _read_all(folder: Path) -> dict[bytes, Tensor]:
    """Return the features (views, D) of each image by its digest. A damaged file is removed: it can be computed again."""
    found: dict[bytes, Tensor] = {}
    for path in folder.glob("[!.]*.safetensors"):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:20] != path.stem:
            path.unlink()
            continue
        tensors = load(content)
        keys = (bytes(digest) for digest in tensors["digests"].numpy())
        found |= dict(zip(keys, tensors["features"], strict=True))
    return found
