"""Load a team file. Every error names its key and line, what was expected, and the nearest known key."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config import rules, yaml_document
from orchestrator.config.resolution import NOT_OF_A_RECIPE, Resolution
from orchestrator.config.team import Team
from orchestrator.config.team_file import MOST_MEMBERS, MOST_TRAININGS, TeamFile
from orchestrator.config.yaml_document import Document, KeyPath, dotted
from workers.config.specs import DataSpec, TrainSpec
from workers.errors import UserInputError

# Keys that all members must share, and why. A member that sets one is rejected.
_SAME_ROWS = "fusion compares members row by row, so all must see the same rows"
_SAME_TRAINING = "costs and out-of-fold outputs compare only between equal trainings"
SHARED = {
    **dict.fromkeys(("data", *DataSpec.model_fields), ("data", _SAME_ROWS)),
    **dict.fromkeys(("train", *TrainSpec.model_fields), ("train", _SAME_TRAINING)),
}

SENTENCES = {  # replace pydantic's messages, by error type
    "model_type": "expected a mapping of keys",
    "dict_type": "expected a mapping of keys",
    "tuple_type": "expected a list",
    "bool_type": "expected true or false",
    "union_tag_not_found": "say which kind: add `kind`",
}
REMOVED = {
    "packed": "packed members were removed, because training them one by one was faster on a CPU. Leave it out",
}
BRANCHES = ("ema", "swa", "int", "float", "OwnServer")  # pydantic's names of the branches of unions
MOST_SHOWN = 50  # problems
Problems = list[tuple[int, str]]  # line in the file, sentence


def load_team(path: Path, data: Path | None = None) -> Team:
    """Read and check a team file.

    Args:
        path: The team file.
        data: Folder or archive to use instead of data.root.

    Raises:
        UserInputError: With every error at once.
    """
    return resolve_team(yaml_document.read_document(path, "`conclave init` writes one to start from."), data)


def resolve_team(document: Document, data: Path | None = None) -> Team:
    """Check and resolve a parsed team file: expand members, and resolve paths relative to the file's folder.

    Args:
        document: The parsed file.
        data: Folder or archive to use instead of data.root.

    Raises:
        UserInputError: With every error at once.
    """
    try:
        file = TeamFile.model_validate(document.values)
    except ValidationError as error:
        raise _refusal(document, [_problem(document, details) for details in error.errors()]) from None
    resolution = Resolution(file, document.path.resolve().parent, data)
    if (members := resolution.number_of_members()) > MOST_MEMBERS:
        text = f"members: {members} of them; a team has {MOST_MEMBERS} at most"
        raise _refusal(document, [(document.line(("members",)), text)])
    if (trainings := members * (1 + file.data.folds)) > MOST_TRAININGS:
        text = f"members: {members} with {file.data.folds} folds are {trainings:,} trainings; the most is {MOST_TRAININGS:,}"
        raise _refusal(document, [(document.line(("members",)), text)])
    if problems := list(_problems_of_members(document, resolution)):
        raise _refusal(document, problems)
    team = resolution.team()
    if problems := list(_broken_rules(document, team, resolution)):
        raise _refusal(document, problems)
    return team


def _refusal(document: Document, problems: Problems) -> UserInputError:
    unique = sorted(dict.fromkeys(problems))
    lines = [f"{document.path}:{line}: {text}" for line, text in unique[:MOST_SHOWN]]
    if more := len(unique) - MOST_SHOWN:
        lines += [f"{document.path}: and {more} more"] if more > 0 else []
    return UserInputError("\n".join(lines))


def _problems_of_members(document: Document, resolution: Resolution) -> Iterator[tuple[int, str]]:
    """Yield problems of entries after merging with the defaults, and duplicate names."""
    first: dict[str, KeyPath] = {}
    for place in resolution.places():
        try:
            names = [member.name for recipe in resolution.trainings(place) for member in recipe.members]
        except ValidationError as error:
            for details in error.errors():
                yield _problem(document, {**details, "loc": (*place, *details["loc"])})
            continue
        for name in names:
            if name.lower() in first:
                line = document.line(first[name.lower()])
                yield document.line((*place, "name")), f"{dotted((*place, 'name'))}: {name!r} is taken (line {line})"
            first.setdefault(name.lower(), place)


def _broken_rules(document: Document, team: Team, resolution: Resolution) -> Iterator[tuple[int, str]]:
    """Yield the line number and message of each broken rule."""
    for text in (*rules.find_data_problems(team), *rules.find_fusion_problems(team), *rules.find_price_problems(team)):
        yield document.line(tuple(text.split(" ")[0].rstrip(":").split("."))), text
    for text in rules.find_student_problems(team, team.student) if team.student else ():
        yield document.line(("student",)), text
    for place in resolution.places():
        for recipe in resolution.trainings(place):
            for text in rules.find_training_problems(team, recipe):
                yield document.line(place), f"member {recipe.name}: {text}"


def _problem(document: Document, details: ErrorDetails) -> tuple[int, str]:
    """Return the line number and message for a pydantic error."""
    where = _in_file(document, details["loc"])
    error_type, value = details["type"], details.get("input")
    if error_type == "extra_forbidden":
        return document.line(where), f"{dotted(where)}: {_unknown_key(where, str(where[-1]))}"
    if error_type == "missing":
        return document.line(where[:-1]), f"{dotted(where)}: required key is missing"
    if error_type == "union_tag_invalid":
        context = details.get("ctx", {})
        place = f"{dotted(where)}: " if where else ""
        known = str(context.get("expected_tags", "")).replace("'", "")
        return document.line(where), f"{place}unknown kind {reprlib.repr(context.get('tag'))}. Known are {known}"
    text = SENTENCES.get(error_type, details["msg"].removeprefix("Value error, ").removeprefix("Input "))
    text = text[0].lower() + text[1:]
    is_sentence = isinstance(value, dict | tuple) or error_type == "value_error" or error_type in SENTENCES
    shown_value = "" if is_sentence else f"{reprlib.repr(value)} "
    place = f"{dotted(where)}: " if where else ""
    return document.line(where), f"{place}{shown_value}{text}"


def _unknown_key(where: KeyPath, key: str) -> str:
    """Explain why a key is not allowed here, and which keys are."""
    if key in REMOVED:
        return REMOVED[key]
    is_of_a_member = len(where) == 3 and where[0] == "members"
    if (is_of_a_member or where[:-1] in (("defaults",), ("student",))) and key in SHARED:
        section, reason = SHARED[key]
        return f"can't differ between members: {reason}. Set it under `{section}:`"
    if where[:-1] == ("student",) and key in NOT_OF_A_RECIPE:
        return "not allowed for the student; leave it out"
    if where[:-1] == ("defaults",) and key in NOT_OF_A_RECIPE:
        return "belongs to a member, not to the defaults"
    known_keys = [known for known in _known_keys(where[:-1]) if known != key]  # another kind may have it
    nearest = difflib.get_close_matches(key, known_keys, 1)
    return "unknown key; " + (f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(known_keys)}")


def _in_file(document: Document, loc: KeyPath) -> KeyPath:
    """Return the key path of an error in the file: pydantic's location without the names of union branches."""
    where: KeyPath = ()
    for position, key in enumerate(loc):
        is_last = position == len(loc) - 1
        if document.has((*where, key)) or (is_last and key not in BRANCHES):
            where = (*where, key)
    return where


def _known_keys(where: KeyPath) -> list[str]:
    """Return the keys that the mapping at `where` may have, by the JSON Schema."""
    schema: dict[str, Any] = TeamFile.model_json_schema()
    nodes = _alternatives(schema, schema["$defs"])
    for key in where:
        step = "items" if isinstance(key, int) else "additionalProperties"
        inner = [node.get("properties", {}).get(key, node.get(step)) for node in nodes]
        nodes = [branch for node in inner if isinstance(node, dict) for branch in _alternatives(node, schema["$defs"])]
    return list(dict.fromkeys(name for node in nodes for name in node.get("properties", ())))


def _alternatives(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the alternatives of a schema, with their references resolved."""
    if "$ref" in node:
        return _alternatives(definitions[node["$ref"].rpartition("/")[2]], definitions)
    branches = node.get("anyOf") or node.get("oneOf")
    return [one for branch in branches for one in _alternatives(branch, definitions)] if branches else [node]
