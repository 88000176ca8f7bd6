"""Check that every recipe can be trained, before a sweep writes anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusion.interface import FUSIONS
from fusion.results import TOP
from orchestrator.config.team import Team
from workers.config.architectures import split_arch
from workers.config.own_code import import_from
from workers.config.specs import MemberSpec
from workers.diagnostics.imports import import_all
from workers.errors import UserInputError, first_few


def check_recipes(team: Team, import_paths: Sequence[str]) -> None:
    """Build every network of the team once, and try the custom code that the recipes name.

    A team of built-in networks known to work, without custom code, is skipped: importing torch takes seconds.

    Args:
        team: The team.
        import_paths: Folders from which custom modules are imported.

    Raises:
        UserInputError: With one line for each problem.
    """
    doubtful = [recipe for recipe in team.recipes if not _is_sure(recipe)]
    if not doubtful and not team.train.references:
        return
    import_all(["workers.runtime.recipe_check"])  # PyTorch
    from workers.runtime.recipe_check import problems_of_recipe, problems_of_training

    import_from(import_paths)
    tried: dict[tuple[object, ...], str | None] = {}
    problems = [text for r in doubtful for text in (*_network(team, r, tried), *problems_of_recipe(r, team.data.size))]
    if problems := [*problems, *problems_of_training(team.train)]:
        raise UserInputError("\n".join(dict.fromkeys(problems)))


def check_classes(team: Team, classes: Sequence[str]) -> None:
    """Check the keys that depend on the classes of the data.

    Raises:
        UserInputError: If a class is unknown, or too few classes leave a metric without a meaning.
    """
    for recipe in team.recipes:
        named = () if recipe.class_weights is None or isinstance(recipe.class_weights, str) else recipe.class_weights
        if unknown := [name for name in named if name not in classes]:
            raise UserInputError(
                f"member {recipe.name}: class_weights: {unknown[0]!r} is no class of the data; "
                f"there are {first_few(list(classes))}."
            )
    if team.metric == "top5" and len(classes) <= TOP:
        raise UserInputError(f"metric: top5 is always 100 % of {len(classes)} classes. Use another metric.")


def _is_sure(recipe: MemberSpec) -> bool:
    source, name = split_arch(recipe.arch)
    return recipe.weights is None and not recipe.references and source.is_sure(name)


def _network(team: Team, recipe: MemberSpec, tried: dict[tuple[object, ...], str | None]) -> Iterator[str]:
    """Yield the problems of a recipe's network. Equal networks are tried once; `tried` caches the results."""
    from workers.models.build import build
    from workers.models.network import has_linear_head
    from workers.runtime.recipe_check import why_untrainable

    size, classes = team.data.size, 2 if recipe.weights is None else 10
    try:
        network = build(recipe, classes, size)
    except UserInputError as error:
        yield str(error)
        return
    except Exception as error:  # a custom network can raise anything
        yield f"member {recipe.name}: {recipe.arch} can't be built ({error})."
        return
    key = (recipe.arch, recipe.width, recipe.stem, classes)
    if key not in tried:
        tried[key] = why_untrainable(lambda: build(recipe, classes, size), size, classes)
    if problem := tried[key]:
        yield (
            f"member {recipe.name}: {recipe.arch} can't be trained on images of {size} x {size} pixels ({problem}). "
            "Set data.image_size to a size that it accepts, or use another network."
        )
    if recipe.freeze and not has_linear_head(network):
        yield f"member {recipe.name}: {recipe.arch} doesn't end in a Linear head, which `freeze: backbone` trains. Leave it out."
    starting = [name for name in team.fusion if FUSIONS[name].needs_linear_heads]
    if starting and recipe in team.trainings and not has_linear_head(network):
        yield (
            f"member {recipe.name}: {recipe.arch} doesn't end in a Linear head, which {starting[0]} needs. "
            f"Take {starting[0]} out of `fusion:`, or give another network."
        )
