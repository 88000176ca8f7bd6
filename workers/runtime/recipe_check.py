"""Try a recipe's network and custom extensions on a few synthetic images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from workers.config.specs import MemberSpec, TrainSpec
from workers.errors import UserInputError
from workers.training.augmentation import augment, make_augmentations
from workers.training.objective import Objective

IMAGES, CLASSES = 2, 3
SMALL_PARAMETERS, SMALL_SIDE = 25_000_000, 256  # up to here, two images take less than half a second


def problems_of_recipe(recipe: MemberSpec, image_size: int) -> Iterator[str]:
    """Yield a sentence for each custom augmentation, optimizer or loss that cannot be used.

    Args:
        recipe: The recipe.
        image_size: Side of the images in pixels.
    """
    own = recipe.references
    labels = torch.zeros(IMAGES, dtype=torch.int64)

    def try_augmentations() -> None:
        images = torch.zeros(IMAGES, image_size, image_size, 3, dtype=torch.uint8)
        x, _ = augment(images, labels, make_augmentations(recipe.augment), torch.Generator().manual_seed(0))
        if x.shape != (IMAGES, 3, image_size, image_size):
            raise ValueError(f"it returned images of shape {tuple(x.shape[1:])}, not {(3, image_size, image_size)}")

    def try_loss() -> None:
        loss = Objective(recipe).loss(torch.zeros(IMAGES, CLASSES), labels)
        if not isinstance(loss, torch.Tensor) or loss.shape != ():
            raise ValueError("it returned no scalar tensor")

    if names := [one.name for one in recipe.augment if one.name in own]:
        yield from _problem(f"augment {', '.join(names)}", try_augmentations)
    if recipe.optimizer.kind in own:
        parameter = torch.nn.Parameter(torch.zeros(2, 2))
        yield from _problem(f"optimizer {recipe.optimizer.kind}", lambda: recipe.optimizer.make([parameter]))
    if recipe.loss in own:
        yield from _problem(f"loss {recipe.loss}", try_loss)


def why_untrainable(build: Callable[[], nn.Module], image_size: int, classes: int) -> str | None:
    """Run one forward and one backward pass on two images. Return the problem, or None.

    A large network first runs on the meta device, which computes only shapes and is fast at any size. If that fails, it runs on
    the CPU: a custom network may need real values. A small network runs on the CPU at once, because importing torch's support
    for the meta device takes more than a second.

    Args:
        build: Returns the network.
        image_size: Side of the images in pixels.
        classes: Number of classes.
    """
    for device in ("cpu",) if _is_small(build, image_size) else ("meta", "cpu"):
        try:
            network = build().to(device).train()
            logits = network(torch.zeros(IMAGES, 3, image_size, image_size, device=device))
            if logits.shape != (IMAGES, classes):
                return f"it answers {tuple(logits.shape)} for {IMAGES} images, and not {(IMAGES, classes)}"
            logits.sum().backward()
        except Exception as error:  # a custom network can raise anything
            problem = " ".join(str(error).split()) or type(error).__name__
        else:
            return None
    return problem


def _is_small(build: Callable[[], nn.Module], image_size: int) -> bool:
    numbers = sum(p.numel() for p in build().parameters() if not nn.parameter.is_lazy(p))
    return image_size <= SMALL_SIDE and numbers <= SMALL_PARAMETERS


def problems_of_training(train: TrainSpec) -> Iterator[str]:
    """Yield a sentence if a custom schedule cannot be used."""
    if train.schedule.kind in train.references:
        yield from _problem(f"schedule {train.schedule.kind}", lambda: train.schedule.rate(0.1, 0, 10, 5))


def _problem(what: str, try_it: Callable[[], object]) -> Iterator[str]:
    try:
        try_it()
    except UserInputError as error:
        yield str(error)
    except Exception as error:  # custom code can raise anything
        yield f"{what}: {type(error).__name__}: {error}."
