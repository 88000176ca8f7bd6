"""Augment batches on a GPU as one CUDA graph that draws from a registered generator.

Like a captured step, this is one function over tensors with fixed addresses, and other devices can run it directly. A graph would
freeze any number drawn from another generator. So each augmentation declares whether it can be captured, and a graph is compared
with eager augmentation, for two seeds and two batches, before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from workers.config.extensions import Augmentation
from workers.training.augmentation import transform
from workers.training.captured import NotCapturedError, capture


def can_be_captured(augmentations: Sequence[Augmentation]) -> bool:
    """Return True if any augmentation changes images and all of those can be captured."""
    applied = [one for one in augmentations if type(one).apply is not Augmentation.apply]
    return bool(applied) and all(one.can_be_captured for one in applied)


class CapturedAugmentation:
    """Augmentations without mixing, over tensors with fixed addresses. A GPU replays them as a CUDA graph.

    Args:
        augmentations: The augmentations, in the order of `make_augmentations`.
    """

    def __init__(self, augmentations: Sequence[Augmentation]) -> None:
        self.augmentations = augmentations
        self.graph: torch.cuda.CUDAGraph | None = None
        self._generator: torch.Generator | None = None
        self._images = self._output = torch.empty(0)

    def __call__(self, images: Tensor, seed: int) -> tuple[Tensor, torch.Generator]:
        """Augment a batch.

        Args:
            images: (N, H, W, 3) uint8, with the same N in every call.
            seed: Seed of all draws.

        Returns:
            (N, 3, H, W) float32, which the next call overwrites; and the generator, for later draws.

        Raises:
            NotCapturedError: If a GPU cannot capture the augmentations, or the graph differs from eager augmentation.
        """
        if self._generator is None:
            self._generator = torch.Generator(images.device)
            self._images = images.clone()
            is_gpu = images.device.type == "cuda"
            with torch.random.fork_rng([images.device] if is_gpu else []):  # keeps global generators unchanged
                self.graph = self._capture(self._generator) if is_gpu else None
                self._compare_with_eager(images, seed)
        return self._run(images, seed), self._generator

    def _run(self, images: Tensor, seed: int) -> Tensor:
        """Augment a batch, with the graph if one was captured."""
        assert self._generator is not None
        self._generator.manual_seed(seed)
        self._images.copy_(images, non_blocking=True)
        if self.graph is None:
            return self._compute(self._generator)
        self.graph.replay()
        return self._output

    def _compute(self, generator: torch.Generator) -> Tensor:
        """Augment the current batch. The graph captures this function."""
        return transform(self._images, self.augmentations, generator)

    def _capture(self, generator: torch.Generator) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        self._output = capture(graph, lambda: self._compute(generator), nullcontext())
        return graph

    def _compare_with_eager(self, images: Tensor, seed: int) -> None:
        """Raise NotCapturedError if either of two batches differs from eager augmentation."""
        assert self._generator is not None
        for number, batch in enumerate((images, images.flip(0))):
            plain = torch.Generator(images.device).manual_seed(seed + number)
            expected = transform(batch.clone(), self.augmentations, plain)  # an augmentation may write into its batch
            found = self._run(batch, seed + number)
            drew_alike = torch.equal(plain.get_state(), self._generator.get_state())
            if not (drew_alike and torch.equal(found, expected)):
                raise NotCapturedError("its images or its draws differ from those without a graph")
