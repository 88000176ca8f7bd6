"""Load a team file. Every error names its key and line, what was expected, and the nearest known key."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config import yaml_document as teamfile
from orchestrator.config.expansion import dotted, expand
from orchestrator.config.team import Team
from orchestrator.config.yaml_document import Document, KeyPath
from workers.config.specs import MemberSpec
from workers.errors import UserInputError

TAGS = ("sgd", "adamw", "step", "cosine", "one_cycle", "ema", "swa")  # of unions: pydantic adds them to where an error is
Recipe = TypeVar("Recipe", bound=MemberSpec)


def load_team(path: Path, data: Path | None = None) -> Team:
    """Read and check a team file.

    Args:
        path: The team file.
        data: Folder or archive to use instead of data.root.

    Raises:
        UserInputError: With every error at once.
    """
    return resolve_team(teamfile.read_document(path, "`conclave init` writes one to start from."), data)


def resolve_team(document: Document, data: Path | None = None) -> Team:
    """Check a parsed team file, and resolve it: members are expanded, and relative paths count from the file's folder.

    Args:
        document: The parsed file.
        data: Folder or archive to use instead of data.root.

    Raises:
        UserInputError: With every error at once.
    """
    values = dict(document.values)
    problems: list[tuple[int, str]] = []
    values, sources = expand(document, values, problems)
    team: Team | None = None
    try:
        team = Team.model_validate(values)
    except ValidationError as error:
        problems += [_problem(document, details, sources) for details in error.errors()]
    if problems or team is None:
        unique = sorted(dict.fromkeys(problems))
        raise UserInputError("\n".join(f"{document.path}:{line}: {text}" for line, text in unique))
    return _located(team, document.path, data)


def _located(team: Team, path: Path, data: Path | None) -> Team:
    """Resolve relative paths against the team file's folder."""
    folder = path.resolve().parent
    root = data.resolve() if data else team.data.root and (folder / team.data.root).resolve()

    def located(recipe: Recipe) -> Recipe:
        return recipe.model_copy(update={"weights": (folder / recipe.weights).resolve()}) if recipe.weights else recipe

    members = tuple(map(located, team.members))
    return team.model_copy(
        update={
            "data": team.data.model_copy(update={"root": root}),
            "members": members,
            "student": team.student and located(team.student),
            "quorum": min(team.quorum, len(members)),
        }
    )


def _problem(document: Document, details: ErrorDetails, sources: list[int]) -> tuple[int, str]:
    known_keys = list(_known_keys(details["loc"][:-1]))
    where = _in_file(document, _source(details["loc"], sources))
    error_type = details["type"]
    value = details.get("input")
    if error_type == "extra_forbidden":
        nearest = difflib.get_close_matches(str(details["loc"][-1]), known_keys, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(known_keys)}"
        return document.line(where), f"{dotted(where)}: unknown key; {hint}"
    if error_type == "missing":
        return document.line(where[:-1]), f"{dotted(where)}: is needed and not there"
    text = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    text = text[0].lower() + text[1:]
    shown_value = "" if isinstance(value, dict | tuple) or error_type == "value_error" else f"{value!r} "
    place = f"{dotted(where)}: " if where else ""
    return document.line(where), f"{place}{shown_value}{text}"


def _source(loc: tuple[int | str, ...], sources: list[int]) -> KeyPath:
    """Translate the index of an expanded member into its index in the file."""
    if len(loc) > 1 and loc[0] == "members" and isinstance(loc[1], int) and loc[1] < len(sources):
        return ("members", sources[loc[1]], *loc[2:])
    return loc


def _in_file(document: Document, loc: KeyPath) -> KeyPath:
    """Drop what pydantic adds (a union's tag), and point to the defaults or the team where the key came from there."""
    where: KeyPath = ()
    for position, key in enumerate(loc):
        is_last = position == len(loc) - 1
        if key in TAGS and not is_last:
            continue
        if key in TAGS and is_last and not document.has((*where, key)):
            continue
        where = (*where, key)
    if len(where) > 2 and where[0] == "members" and not document.has(where):
        for fallback in (("defaults", *where[2:]), where[2:] if where[2] == "resources" else ()):
            if fallback and document.has(fallback):
                return fallback
    if len(where) > 1 and where[0] == "student" and not document.has(where) and document.has(("defaults", *where[1:])):
        return ("defaults", *where[1:])
    return where


def _known_keys(loc: tuple[int | str, ...]) -> Iterator[str]:
    """Yield the keys that may stand at `loc`, by walking the models' annotations."""
    kinds: list[Any] = [Team]
    for key in loc:
        kinds = [t for kind in kinds for t in _step(kind, key)]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from (f for f in kind.model_fields)
            if kind is Team:
                yield "defaults"
            if kind is MemberSpec:
                yield "count"


def _step(kind: Any, key: int | str) -> list[Any]:
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return []
    if key in kind.model_fields:
        return _models(kind.model_fields[str(key)].annotation)
    if kind.model_fields.get("kind") and kind.model_fields["kind"].default == key:
        return [kind]  # a union's tag
    return [kind] if isinstance(key, int) else []


def _models(annotation: Any) -> list[Any]:
    """Return the model classes inside an annotation: X, X | Y, tuple[X, ...], Annotated[X, ...]."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, tuple, Annotated):
        return [m for a in typing.get_args(annotation) if not isinstance(a, str) for m in _models(a)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
