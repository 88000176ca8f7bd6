"""Mirror a team file as users write it. Editors use its JSON Schema for completion and checks.

Omitted keys stay unset here; `resolution.py` fills in the defaults.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fusion.interface import FUSIONS
from orchestrator.config.settings import OwnServer
from orchestrator.config.team import TeamSettings
from workers.config.architectures import check_arch, describe_arch
from workers.config.extensions import OPTIMIZERS, Kinds, OptimizerSpec, OwnOptimizer
from workers.config.recipe import Augments
from workers.config.resources import Resources
from workers.config.specs import MemberKeys, NetworkKeys, StudentKeys
from workers.config.strict import Name

MOST_COPIES = 1000
MOST_MEMBERS = 10_000
MOST_TRAININGS = 100_000  # including fold trainings


OptimizerEntry = Annotated[OptimizerSpec | dict[str, Any], Kinds(OPTIMIZERS, OwnOptimizer, allows_changes=True)]


class RecipeEntry(NetworkKeys):
    """The keys of a recipe, all optional."""

    seed: int | None = Field(
        None, ge=0, lt=2**63, description="Seed of the training. By default derived from the team's seed and the name."
    )
    arch: Annotated[str, AfterValidator(check_arch)] = Field("resnet18", description=describe_arch())
    optimizer: OptimizerEntry | None = Field(None, description="The optimizer, by name or with its settings.")
    augment: Augments | None = Field(None, description="Augmentations, by name or as NAME: STRENGTH.")
    resources: Resources | None = Field(None, description="Resources that one training needs.")


class DefaultsEntry(RecipeEntry, MemberKeys):
    """Keys shared by all members. A member's own keys win."""


class MemberEntry(DefaultsEntry):
    """One entry of `members:`."""

    name: Name = Field(description="The member's name.")
    count: int | None = Field(None, ge=1, le=MOST_COPIES, description="Number of copies that differ in their seed.")


class StudentEntry(RecipeEntry, StudentKeys):
    """`student:`, one network distilled from the members' pooled predictions."""


def _at_least_one(value: Any) -> Any:
    if value == ():
        raise ValueError("a team needs at least one member")
    return value


class TeamFile(TeamSettings):
    """A team: its members, their training, and how they are combined."""

    version: Literal[1, 2] = Field(1, description="Version of the format. Version 2 fits fusions on the data's val part.")
    defaults: DefaultsEntry | None = Field(None, description="Keys shared by all members.")
    members: Annotated[tuple[MemberEntry, ...], BeforeValidator(_at_least_one)] = Field(description="The members.")
    fusion: tuple[Annotated[str, FUSIONS], ...] | None = Field(None, min_length=1, description="The fusions to fit.")
    student: StudentEntry | None = Field(None, description="How the student of `fusion: [student]` is trained.")
    resources: Resources | None = Field(None, description="Resources that one training needs.")
    prices: dict[Name, Annotated[float, Field(ge=0)] | OwnServer] = Field(
        {}, description="Price of a trainer for an hour, by machine."
    )
    environment: Literal["strict", "warn"] | None = Field(
        None, description="Whether machines with other versions are rejected; strict on a cluster by default."
    )


def schema_text() -> str:
    """Return the JSON Schema of team files."""
    return json.dumps(TeamFile.model_json_schema(), indent=1) + "\n"
