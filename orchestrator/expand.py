"""What a team file says of its members -> one mapping a member: defaults merged, `count` and the like expanded, seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fusion.names import DEFAULT
from orchestrator.teamfile import Document, Path_
from workers import legacy
from workers.job import derive_seed
from workers.spec import DataSpec, TrainSpec
from workers.strict import NAME

# What a team must share, and why: a member that sets one of these is told.
SHARED = {
    **dict.fromkeys(DataSpec.model_fields, "fusion compares members row by row, so all must see the same rows"),
    **dict.fromkeys(TrainSpec.model_fields, "costs and out-of-fold outputs compare only between equal trainings"),
    "data": "fusion compares members row by row, so all must see the same rows",
    "train": "costs and out-of-fold outputs compare only between equal trainings",
}


NOT_A_STUDENTS = ("name", "count", "packed", "snapshots", "cycles", "cycle", "average", "averaged", "search", "pick")


def expand(document: Document, values: dict[str, Any], problems: list[tuple[int, str]]) -> tuple[dict[str, Any], list[int]]:
    """Merge defaults into members, expand `count`, derive seeds. Also gives each member's index in the file."""
    problems += [(document.line(place), text) for place, text in legacy.removed_settings(values)]
    values = legacy.without_removed(values)
    defaults = values.pop("defaults", None) or {}
    entries = values.get("members")
    if not isinstance(defaults, dict):
        problems.append((document.line(("defaults",)), "defaults: expected a mapping of member keys"))
        defaults = {}
    for key in [k for k in ("name", "count", "seed") if k in defaults]:
        problems.append((document.line(("defaults", key)), f"defaults.{key}: belongs to a member, not to the defaults"))
    _refuse_shared(document, ("defaults",), defaults, problems)
    if not isinstance(entries, tuple):
        return values, []
    members: list[Any] = []
    sources: list[int] = []
    for index, entry in enumerate(entries):
        where: Path_ = ("members", index)
        if not isinstance(entry, dict):
            problems.append((document.line(where), f"members[{index}]: expected a mapping like {{name: plain}}"))
            continue
        _refuse_shared(document, where, entry, problems)
        for member in _copies(document, where, _merge(defaults, entry), problems):
            members.append({**member, "resources": _resources(values, member)})
            sources.append(index)
    _seed(values.get("seed", 0), members)
    _pack(members, sources)
    asked = values.get("fusion", DEFAULT)
    if "student" in values or (isinstance(asked, tuple) and "student" in asked):
        values["student"] = _student(document, values, defaults, problems)
    members, sources = _derived(members, sources)
    for line, text in _twice(document, members, sources):
        problems.append((line, text))
    values["members"] = tuple(members)
    return values, sources


def _student(document: Document, values: dict[str, Any], defaults: dict[str, Any], problems: list[tuple[int, str]]) -> Any:
    """A member's recipe by the defaults, with what the file says under `student:`."""
    entry = values.get("student") or {}
    if not isinstance(entry, dict):
        problems.append((document.line(("student",)), "student: expected a mapping like {epochs: 50, temperature: 2}"))
        return None
    for key in [k for k in NOT_A_STUDENTS if k in entry]:
        problems.append((document.line(("student", key)), f"student.{key}: a student has none of its own; leave it out"))
    own = {k: v for k, v in entry.items() if k not in NOT_A_STUDENTS}
    _refuse_shared(document, ("student",), own, problems, may={"epochs"})
    alone = {k: v for k, v in defaults.items() if k not in NOT_A_STUDENTS}
    student = {**_merge(alone, own), "name": "student"}
    _seed(values.get("seed", 0), [student])
    return {**student, "resources": _resources(values, student)}


def _refuse_shared(
    document: Document,
    where: Path_,
    entry: dict[str, Any],
    problems: list[tuple[int, str]],
    may: frozenset[str] | set[str] = frozenset(),
) -> None:
    for key in [k for k in entry if k in SHARED and k not in may]:
        section = key if key in ("data", "train") else "data" if key in DataSpec.model_fields else "train"
        problems.append(
            (
                document.line((*where, key)),
                f"{dotted((*where, key))}: can't differ between members: {SHARED[key]}. Set it under `{section}:`",
            )
        )
        del entry[key]


def _copies(
    document: Document, where: Path_, member: dict[str, Any], problems: list[tuple[int, str]]
) -> Iterator[dict[str, Any]]:
    """`{name: seeds, count: 3, seed: s}` -> seeds-1, seeds-2, seeds-3 with seeds s, s+1, s+2."""
    packed = member.get("packed", False)
    if not isinstance(packed, bool):
        problems.append((document.line((*where, "packed")), f"{dotted(where)}.packed: expected true or false"))
        packed = member["packed"] = False
    if packed and member.get("count", 1) == 1:
        problems.append((document.line(where), f"{dotted(where)}.packed: trains the members of one `count: 2` or more at once"))
    if "count" not in member:
        yield member
        return
    count = member.pop("count")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1000:
        problems.append((document.line((*where, "count")), f"{dotted(where)}.count: expected a whole number, 1 to 1000"))
        count = 1
    for i in range(count):
        copy = dict(member)
        if isinstance(member.get("name"), str):
            copy["name"] = f"{member['name']}-{i + 1}"
        if isinstance(member.get("seed"), int):
            copy["seed"] = member["seed"] + i
        yield copy


def _pack(members: list[Any], sources: list[int]) -> None:
    """Each of the members that are trained at once gets to know the seeds of all of them."""
    for member, source in zip(members, sources, strict=True):
        if member.pop("packed", False) is True:
            member["packed"] = tuple(other["seed"] for other, of in zip(members, sources, strict=True) if of == source)


def _derived(members: list[Any], sources: list[int]) -> tuple[list[Any], list[int]]:
    """Each member in the place of which its training makes several: those. Also where each comes from in the file."""
    found = [(made, source) for member, source in zip(members, sources, strict=True) for made in _made_of(member)]
    return [made for made, _ in found], [source for _, source in found]


def _made_of(member: Any) -> list[Any]:
    """`{name: cyclic, snapshots: 3}` -> cyclic.1, cyclic.2, cyclic.3, each going on from the one before; `{name: plain,
    average: swa}` -> plain, and plain.swa, whose weights are averages along plain's training."""
    name, count, average = member.get("name"), member.get("snapshots"), _as_kind(member.get("average"))
    search = member.get("search")
    keep = search.get("keep", 1) if isinstance(search, dict) else 1
    if (
        isinstance(keep, int)
        and not isinstance(keep, bool)
        and 1 < keep <= 100
        and "pick" not in member
        and isinstance(name, str)
    ):
        return [{**member, "name": f"{name}-{k}", "pick": k, "seed": _seed_of(member, k)} for k in range(1, keep + 1)]
    whole = isinstance(count, int) and not isinstance(count, bool)
    if whole and 1 < count <= 100 and "cycle" not in member:
        named = [{"name": f"{name}.{k}"} if isinstance(name, str) else {} for k in range(1, count + 1)]
        return [{**member, "cycle": k, **of} for k, of in enumerate(named, 1)]
    kind = average.get("kind") if isinstance(average, dict) else None
    if kind in ("ema", "swa") and isinstance(name, str) and "averaged" not in member:
        return [member, {**member, "name": f"{name}.{kind}", "averaged": True}]
    return [member]


def _seed_of(member: dict[str, Any], pick: int) -> Any:
    """Of the members that one search finds: each its own, as with `count`."""
    seed = member.get("seed")
    return seed + pick - 1 if isinstance(seed, int) and not isinstance(seed, bool) else seed


def _merge(base: Any, over: Any) -> Any:
    """Deep merge; a mapping whose `kind` differs replaces the other, because its keys mean other things."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if over.get("kind", base.get("kind")) != base.get("kind"):
        return over
    merged = dict(base)
    for key, value in over.items():
        plain = key in ("optimizer", "average")  # the member keys for which a plain name stands for a mapping
        merged[key] = _merge(_as_kind(base.get(key)), _as_kind(value)) if plain else _merge(base.get(key), value)
    return merged


def _as_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _resources(values: dict[str, Any], member: dict[str, Any]) -> Any:
    return _merge(values.get("resources") or {}, member.get("resources") or {})


def _seed(team_seed: Any, members: list[Any]) -> None:
    for member in members:
        if member.get("seed") is None:
            member["seed"] = derive_seed(team_seed, str(member.get("name")))


def _twice(document: Document, members: list[Any], sources: list[int]) -> Iterator[tuple[int, str]]:
    seen: dict[str, int] = {}
    for member, index in zip(members, sources, strict=True):
        name = member.get("name")
        if not isinstance(name, str):
            continue
        if not NAME.fullmatch(name):
            continue  # its own error says so
        if name.lower() in seen:
            first = document.line(("members", seen[name.lower()]))
            yield document.line(("members", index, "name")), f"members[{index}].name: {name!r} is taken (line {first})"
        seen.setdefault(name.lower(), index)


# --- pydantic's errors in words -----------------------------------------------------------------------------------


def dotted(where: Path_) -> str:
    text = ""
    for key in where:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text
