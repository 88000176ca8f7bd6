"""Cut a team down to a trial of the whole chain: a few images, and two steps for each training."""

from __future__ import annotations

from typing import TypeVar

from orchestrator.config.team import Team
from workers.config.specs import MemberSpec

FEWEST_IMAGES, IMAGES_PER_FOLD = 6, 3  # of each class
SHARE = 0.34  # of the images for *test*, and of the rest for *fuse*: enough for each class to be in every part
STEPS = 2

Recipe = TypeVar("Recipe", bound=MemberSpec)


def smoke_team(team: Team) -> Team:
    """Return a team that goes through all that a sweep of `team` goes through, in as few steps as possible.

    Networks, image size, folds, fusions and the layout of the data stay. The rows are so few that no score means anything.
    """
    data = team.data.model_copy(
        update={
            "images_per_class": max(FEWEST_IMAGES, IMAGES_PER_FOLD * team.data.folds),
            "test_fraction": max(SHARE, team.data.test_fraction),
            "fuse_fraction": max(SHARE, team.data.fuse_fraction),
            "split": None,
        }
    )
    epochs = max(recipe.snapshots for recipe in team.recipes)
    train = team.train.model_copy(update={"epochs": epochs, "steps_per_epoch": STEPS, "fold_epochs": 1.0})
    return team.model_copy(
        update={
            "name": f"{team.name}-smoke",
            "data": data,
            "train": train,
            "trainings": tuple(_smoke_recipe(recipe) for recipe in team.trainings),
            "student": team.student and _smoke_recipe(team.student).model_copy(update={"epochs": epochs}),
            "tracking": team.tracking.model_copy(update={"uri": None}),
        }
    )


def _smoke_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with a search, if it has one, of as few trials as it keeps."""
    if recipe.search is None:
        return recipe
    search = recipe.search.model_copy(update={"trials": max(2, recipe.search.keep), "epochs": None, "grace": 1})
    return recipe.model_copy(update={"search": search})
