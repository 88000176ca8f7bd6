"""Check that every recipe can be trained, before a sweep writes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fusion.interface import FUSIONS
from fusion.results import TOP
from orchestrator.config.team import Team
from workers.config.architectures import split_arch
from workers.config.own_code import import_from
from workers.config.specs import PUBLISHED, MemberSpec
from workers.diagnostics.imports import import_all
from workers.errors import UserInputError, first_few

if TYPE_CHECKING:
    from workers.models.source import PretrainedWeights

Recipe = TypeVar("Recipe", bound=MemberSpec)


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


def published_weights(team: Team) -> dict[str, PretrainedWeights]:
    """Return the files that the team's `weights: imagenet` stand for, by `arch`. Imports torch if there are any.

    Raises:
        UserInputError: If an architecture has none.
    """
    found = {}
    for recipe in team.recipes:
        if recipe.weights in PUBLISHED:
            source, name = split_arch(recipe.arch)
            file = source.pretrained(name)
            if file is None:
                raise UserInputError(
                    f"member {recipe.name}: {recipe.arch} has no published weights that take images normalized as they are here. "
                    "Name a file, or another network."
                )
            found[recipe.arch] = file
    return found


def with_weights(team: Team, files: Mapping[str, Path]) -> Team:
    """Return the team with files, by `arch`, in the place of `weights: imagenet`."""

    def resolved(recipe: Recipe) -> Recipe:
        if recipe.weights not in PUBLISHED:
            return recipe
        return recipe.model_copy(update={"weights": files[recipe.arch]})

    trainings, student = tuple(map(resolved, team.trainings)), team.student and resolved(team.student)
    return team.model_copy(update={"trainings": trainings, "student": student}) if files else team


def fetch_weights(team: Team, say: Callable[[str], None]) -> Team:
    """Download the weights that a team starts from, and return the team with their files.

    Args:
        team: The team.
        say: Shows a line to the user.

    Raises:
        UserInputError: If a file can't be downloaded.
    """
    if not any(recipe.weights in PUBLISHED for recipe in team.recipes):
        return team
    from workers.models.pretrained import download

    published = published_weights(team)
    for arch, weights in published.items():
        if weights.pixels not in (0, size := team.data.size):
            say(f"the weights of {arch} were trained on images of {weights.pixels} pixels; here data.image_size is {size}")
    return with_weights(team, {arch: download(weights, say) for arch, weights in published.items()})


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
