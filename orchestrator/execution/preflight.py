"""Check before a sweep that every recipe can be trained, so that nothing is written for a team that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fusion.interface import FUSIONS
from orchestrator.config.team import Team
from workers.config.specs import MemberSpec
from workers.errors import UserInputError

IMAGES = 2  # to try augmentations and losses on


def check_recipes(team: Team, import_paths: Sequence[str]) -> None:
    """Build every network of the team once, and try what of the user's own the recipes name.

    Args:
        team: The team.
        import_paths: Folders from which the users' own modules are imported.

    Raises:
        UserInputError: With one line for each problem.
    """
    from workers.models.build import import_from

    import_from(import_paths)
    checks = [check for recipe in team.recipes for check in (_network, _augmentations, _optimizer, _loss)]
    recipes = [recipe for recipe in team.recipes for _ in range(4)]
    problems = [text for check, recipe in zip(checks, recipes, strict=True) for text in check(team, recipe)]
    if problems := [*problems, *_schedule(team)]:
        raise UserInputError("\n".join(dict.fromkeys(problems)))


def _network(team: Team, recipe: MemberSpec) -> Iterator[str]:
    from workers.models.build import build
    from workers.models.network import has_linear_head

    try:
        network = build(recipe, 2 if recipe.weights is None else 10, team.data.size)
    except UserInputError as error:
        yield str(error)
        return
    except Exception as error:  # whatever a network of the user's own can raise
        yield f"member {recipe.name}: {recipe.arch} can't be built ({error})."
        return
    starting = [name for name in team.fusion if FUSIONS[name].needs_linear_heads]
    if starting and recipe in team.trainings and not has_linear_head(network):
        yield (
            f"member {recipe.name}: {recipe.arch} doesn't end in a Linear head, which {starting[0]} starts from. "
            f"Take {starting[0]} out of `fusion:`, or give another network."
        )


def _augmentations(team: Team, recipe: MemberSpec) -> Iterator[str]:
    import torch

    from workers.training.augmentation import augment, make_augmentations

    size = team.data.size
    images, labels = torch.zeros(IMAGES, size, size, 3, dtype=torch.uint8), torch.zeros(IMAGES, dtype=torch.int64)

    def try_it() -> None:
        x, _ = augment(images, labels, make_augmentations(recipe.augment), torch.Generator().manual_seed(0))
        if x.shape != (IMAGES, 3, size, size):
            raise ValueError(f"images of {tuple(x.shape[1:])} came out of it, not of {(3, size, size)}")

    names = [one.name for one in recipe.augment if one.name in recipe.references]
    yield from _problem(f"augment {', '.join(names)}", try_it) if names else ()


def _optimizer(team: Team, recipe: MemberSpec) -> Iterator[str]:
    import torch

    if recipe.optimizer.kind in recipe.references:
        parameter = torch.nn.Parameter(torch.zeros(2, 2))
        yield from _problem(f"optimizer {recipe.optimizer.kind}", lambda: recipe.optimizer.make([parameter]))


def _loss(team: Team, recipe: MemberSpec) -> Iterator[str]:
    import torch

    from workers.training.objective import Objective

    def try_it() -> None:
        loss = Objective(recipe).loss(torch.zeros(IMAGES, 3), torch.zeros(IMAGES, dtype=torch.int64))
        if not isinstance(loss, torch.Tensor) or loss.shape != ():
            raise ValueError("it returned no scalar tensor")

    if recipe.loss in recipe.references:
        yield from _problem(f"loss {recipe.loss}", try_it)


def _schedule(team: Team) -> Iterator[str]:
    schedule = team.train.schedule
    if schedule.kind in team.train.references:
        yield from _problem(f"schedule {schedule.kind}", lambda: schedule.rate(0.1, 0, 10, 5))


def _problem(what: str, try_it: Callable[[], object]) -> Iterator[str]:
    try:
        try_it()
    except UserInputError as error:
        yield str(error)
    except Exception as error:  # whatever a user's own code can raise
        yield f"{what}: {type(error).__name__}: {error}."
