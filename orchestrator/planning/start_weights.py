"""Find the files of weights that a team's networks start from: published ones, those of a member, or a file.

In a team file, `weights: imagenet` stands for a library's file, and `weights: SWEEP/MEMBER` for a member in the same home. A
member that saw rows which are judged here would make all scores too good, so such a start is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from orchestrator.config.team import Team
from orchestrator.home import Home
from workers.config.architectures import split_arch
from workers.config.specs import PUBLISHED, DataSpec, MemberSpec
from workers.data.split_history import source_key
from workers.data.splits import Split
from workers.data.store import Rows, Store
from workers.errors import UserInputError
from workers.storage.artifacts import MemberArtifact

if TYPE_CHECKING:
    from workers.models.source import PretrainedWeights

Recipe = TypeVar("Recipe", bound=MemberSpec)


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


def fetch_weights(team: Team, home: Home, say: Callable[[str], None]) -> Team:
    """Download the weights that a team starts from, and return the team with the paths of all its files.

    All members see the same images, so these are resized as for the published weights only if all of them agree.

    Args:
        team: The team.
        home: The home of the members that it starts from.
        say: Shows a line to the user.

    Raises:
        UserInputError: If a file can't be downloaded, or a member is unknown or not done.
    """

    def download_and_say(arch: str, weights: PretrainedWeights) -> Path:
        from workers.models.pretrained import download

        if weights.pixels not in (0, size := team.data.size):
            say(f"the weights of {arch} were trained on images of {weights.pixels} pixels; here data.image_size is {size}")
        return download(weights, say)

    found = _with_files(team, home, download_and_say)
    kinds = {weights.interpolation for weights in published_weights(team).values()}
    if team.data.interpolation is None and len(kinds) > 1:
        say("the published weights were trained on images that were resized in different ways; here all are resized bilinearly")
    return found


def locate_weights(team: Team, home: Home) -> Team:
    """Return the team with the paths of all its files of weights, whether they are downloaded or not.

    Raises:
        UserInputError: If a member is unknown or not done.
    """
    from workers.models.pretrained import cached_file

    return _with_files(team, home, lambda arch, weights: cached_file(weights))


def with_interpolation(team: Team) -> Team:
    """Return the team with the interpolation of its published weights, if they agree and the team file names none."""
    kinds = {weights.interpolation for weights in published_weights(team).values()}
    if team.data.interpolation is not None or kinds != {"bicubic"}:
        return team
    return team.model_copy(update={"data": team.data.model_copy(update={"interpolation": "bicubic"})})


def is_reference_to_member(weights: Path | None) -> bool:
    """Return whether `weights` is SWEEP/MEMBER: the only relative path with a folder in a resolved team."""
    return weights is not None and not weights.is_absolute() and weights not in PUBLISHED


def _with_files(team: Team, home: Home, published_file: Callable[[str, PretrainedWeights], Path]) -> Team:
    if not any(recipe.weights in PUBLISHED or is_reference_to_member(recipe.weights) for recipe in team.recipes):
        return team
    published = {arch: published_file(arch, weights) for arch, weights in published_weights(team).items()}

    def resolved(recipe: Recipe) -> Recipe:
        if recipe.weights in PUBLISHED:
            return recipe.model_copy(update={"weights": published[recipe.arch]})
        if recipe.weights and is_reference_to_member(recipe.weights):
            return recipe.model_copy(update={"weights": _file_of_member(home, recipe.name, recipe.weights)})
        return recipe

    trainings, student = tuple(map(resolved, team.trainings)), team.student and resolved(team.student)
    return with_interpolation(team).model_copy(update={"trainings": trainings, "student": student})


def _file_of_member(home: Home, name: str, reference: Path) -> Path:
    """Return the weights of SWEEP/MEMBER. Raises UserInputError if there are none."""
    sweep, member = reference.parts
    try:
        state = home.existing(sweep).state()
    except UserInputError as error:
        raise UserInputError(f"member {name}: weights: {reference} is no file, and in {error}") from None
    signatures = state.members if state else {}
    if member not in signatures:
        raise UserInputError(f"member {name}: weights: {sweep} has no member {member}; it has {', '.join(signatures)}.")
    artifact = MemberArtifact.in_home(home.path.absolute(), signatures[member][0])
    if not artifact.done:
        raise UserInputError(f"member {name}: weights: {reference} is not trained yet. Run `conclave sweep` on its team first.")
    return artifact.weights_file


def check_starts(team: Team, store: Store, split: Split) -> None:
    """Check that no network starts from a member that was trained on rows which are judged here.

    Raises:
        UserInputError: If one was trained on *fuse* or *test* rows, or on *fit* rows where folds are left out.
    """
    for recipe in team.recipes:
        seen = _rows_seen(recipe.weights, store, team.data)
        parts = {"test": split.test, "fuse": split.fuse, "fit": split.fit if team.folds else split.fit[:0]}
        for part, rows in parts.items():
            if count := int(np.isin(rows, seen).sum()):
                why = "its scores would be too good. Start from a member that was trained on other images"
                if part == "fit":
                    why = "the folds leave them out in turn. Set data.folds to 0"
                raise UserInputError(
                    f"member {recipe.name}: weights: the member that it starts from was trained on {count:,} of the {part} "
                    f"images here: {why}."
                )


def _rows_seen(weights: Path | None, store: Store, spec: DataSpec) -> Rows:
    """Return the rows of a store that the member behind a file of weights was trained on, and those that it started from.

    Images of the same source are recognised by their paths, whatever their size was; others by their content.
    """
    seen = [np.zeros(0, dtype=np.int64)]
    for artifact in _ancestors(weights):
        is_of_source = artifact.manifest().data_source == source_key(spec)
        kind, keys = ("ids", store.id_keys) if is_of_source else ("contents", store.content_keys)
        seen.append(np.flatnonzero(np.isin(keys, artifact.outputs()[f"fit_{kind}"].numpy())))
    return np.concatenate(seen)


def _ancestors(weights: Path | None) -> Iterator[MemberArtifact]:
    """Yield the artifact that a file of weights belongs to, and those that its training started from."""
    while weights is not None:
        artifact = MemberArtifact(weights.parent.parent)
        if weights != artifact.weights_file or not artifact.done:
            return
        yield artifact
        weights = artifact.manifest().member.weights
