"""Expand what a team file says of its members to one mapping per member: defaults merged, `count` expanded, seeds derived."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fusion.methods.names import DEFAULT
from orchestrator.config.yaml_document import Document, KeyPath
from workers.config.job import derive_seed
from workers.config.specs import DataSpec, TrainSpec
from workers.config.strict import NAME
from workers.storage import legacy

# What a team must share, and why: a member that sets one of these is refused.
_SAME_ROWS = "fusion compares members row by row, so all must see the same rows"
_SAME_TRAINING = "costs and out-of-fold outputs compare only between equal trainings"
SHARED = {
    **dict.fromkeys(DataSpec.model_fields, _SAME_ROWS),
    **dict.fromkeys(TrainSpec.model_fields, _SAME_TRAINING),
    "data": _SAME_ROWS,
    "train": _SAME_TRAINING,
}

MEMBER_ONLY = ("name", "count", "packed", "snapshots", "cycles", "cycle", "average", "averaged", "search", "pick")
PLAIN_NAME_KEYS = ("optimizer", "average")  # the member keys for which a plain name stands for a mapping
MOST_COPIES, MOST_DERIVED = 1000, 100

Problems = list[tuple[int, str]]  # line in the file, sentence


def expand(document: Document, values: dict[str, Any], problems: Problems) -> tuple[dict[str, Any], list[int]]:
    """Expand a team file.

    Args:
        document: The parsed file.
        values: Its values.
        problems: Gets a line number and a sentence for each problem.

    Returns:
        The values with one entry per member, and the index in the file of each member's entry.
    """
    problems += [(document.line(place), text) for place, text in legacy.removed_settings(values)]
    return _Expander(document, legacy.without_removed(values), problems).expand()


class _Expander:
    def __init__(self, document: Document, values: dict[str, Any], problems: Problems) -> None:
        self.document, self.values, self.problems = document, values, problems
        self.defaults = values.pop("defaults", None) or {}

    def expand(self) -> tuple[dict[str, Any], list[int]]:
        values = self.values
        self._check_defaults()
        if not isinstance(values.get("members"), tuple):
            return values, []
        members, sources = self._merged_members(values["members"])
        _add_seeds(values.get("seed", 0), members)
        _add_pack_seeds(members, sources)
        fusions = values.get("fusion", DEFAULT)
        if "student" in values or (isinstance(fusions, tuple) and "student" in fusions):
            values["student"] = self._student()
        members, sources = _derive_members(members, sources)
        self.problems += _repeated_names(self.document, members, sources)
        values["members"] = tuple(members)
        return values, sources

    def _problem(self, where: KeyPath, text: str) -> None:
        self.problems.append((self.document.line(where), text))

    def _check_defaults(self) -> None:
        if not isinstance(self.defaults, dict):
            self._problem(("defaults",), "defaults: expected a mapping of member keys")
            self.defaults = {}
        for key in [k for k in ("name", "count", "seed") if k in self.defaults]:
            self._problem(("defaults", key), f"defaults.{key}: belongs to a member, not to the defaults")
        self._refuse_shared(("defaults",), self.defaults)

    def _merged_members(self, entries: tuple[Any, ...]) -> tuple[list[Any], list[int]]:
        members: list[Any] = []
        sources: list[int] = []
        for index, entry in enumerate(entries):
            where: KeyPath = ("members", index)
            if not isinstance(entry, dict):
                self._problem(where, f"members[{index}]: expected a mapping like {{name: plain}}")
                continue
            self._refuse_shared(where, entry)
            for member in self._copies(where, _merge(self.defaults, entry)):
                members.append({**member, "resources": _merge_resources(self.values, member)})
                sources.append(index)
        return members, sources

    def _student(self) -> Any:
        """Return a member's recipe by the defaults, with what the file says under `student:`."""
        entry = self.values.get("student") or {}
        if not isinstance(entry, dict):
            self._problem(("student",), "student: expected a mapping like {epochs: 50, temperature: 2}")
            return None
        for key in [k for k in MEMBER_ONLY if k in entry]:
            self._problem(("student", key), f"student.{key}: a student has none of its own; leave it out")
        settings = {k: v for k, v in entry.items() if k not in MEMBER_ONLY}
        self._refuse_shared(("student",), settings, allowed=frozenset({"epochs"}))
        defaults = {k: v for k, v in self.defaults.items() if k not in MEMBER_ONLY}
        student = {**_merge(defaults, settings), "name": "student"}
        _add_seeds(self.values.get("seed", 0), [student])
        return {**student, "resources": _merge_resources(self.values, student)}

    def _refuse_shared(self, where: KeyPath, entry: dict[str, Any], allowed: frozenset[str] = frozenset()) -> None:
        for key in [k for k in entry if k in SHARED and k not in allowed]:
            section = key if key in ("data", "train") else "data" if key in DataSpec.model_fields else "train"
            reason = f"can't differ between members: {SHARED[key]}. Set it under `{section}:`"
            self._problem((*where, key), f"{dotted((*where, key))}: {reason}")
            del entry[key]

    def _copies(self, where: KeyPath, member: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Expand `{name: seeds, count: 3, seed: s}` to seeds-1, seeds-2, seeds-3 with the seeds s, s+1, s+2."""
        packed = member.get("packed", False)
        if not isinstance(packed, bool):
            self._problem((*where, "packed"), f"{dotted(where)}.packed: expected true or false")
            packed = member["packed"] = False
        if packed and member.get("count", 1) == 1:
            self._problem(where, f"{dotted(where)}.packed: trains the members of one `count: 2` or more at once")
        if "count" not in member:
            yield member
            return
        count = member.pop("count")
        if not _is_whole(count) or not 1 <= count <= MOST_COPIES:
            self._problem((*where, "count"), f"{dotted(where)}.count: expected a whole number, 1 to {MOST_COPIES}")
            count = 1
        for i in range(count):
            copy = dict(member)
            if isinstance(member.get("name"), str):
                copy["name"] = f"{member['name']}-{i + 1}"
            if isinstance(member.get("seed"), int):
                copy["seed"] = member["seed"] + i
            yield copy


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _add_pack_seeds(members: list[Any], sources: list[int]) -> None:
    """Tell each of the members that are trained at once the seeds of all of them."""
    for member, source in zip(members, sources, strict=True):
        if member.pop("packed", False) is True:
            pack = [other for other, other_source in zip(members, sources, strict=True) if other_source == source]
            member["packed"] = tuple(other["seed"] for other in pack)


def _derive_members(members: list[Any], sources: list[int]) -> tuple[list[Any], list[int]]:
    """Replace each member by those that its training makes. Return them, and where each comes from in the file."""
    pairs = [(derived, source) for member, source in zip(members, sources, strict=True) for derived in _derived(member)]
    return [derived for derived, _ in pairs], [source for _, source in pairs]


def _derived(member: Any) -> list[Any]:
    """Return the members that one entry's training, or search, makes.

    `{name: cyclic, snapshots: 3}` makes cyclic.1, cyclic.2 and cyclic.3, each going on from the one before. `{name: plain,
    average: swa}` makes plain, and plain.swa with averaged weights. `{name: tuned, search: {keep: 2}}` makes tuned-1 and
    tuned-2.
    """
    name = member.get("name")
    search = member.get("search")
    keep = search.get("keep", 1) if isinstance(search, dict) else 1
    if _is_several(keep) and "pick" not in member and isinstance(name, str):
        return [{**member, "name": f"{name}-{k}", "pick": k, "seed": _seed_of_pick(member, k)} for k in range(1, keep + 1)]
    snapshots = member.get("snapshots")
    if _is_several(snapshots) and "cycle" not in member:
        names = [{"name": f"{name}.{k}"} if isinstance(name, str) else {} for k in range(1, snapshots + 1)]
        return [{**member, "cycle": k, **named} for k, named in enumerate(names, 1)]
    average = _as_kind(member.get("average"))
    kind = average.get("kind") if isinstance(average, dict) else None
    if kind in ("ema", "swa") and isinstance(name, str) and "averaged" not in member:
        return [member, {**member, "name": f"{name}.{kind}", "averaged": True}]
    return [member]


def _is_several(value: Any) -> bool:
    return _is_whole(value) and 1 < value <= MOST_DERIVED


def _seed_of_pick(member: dict[str, Any], pick: int) -> Any:
    """Return the seed of one of the members that a search finds: each has its own, as with `count`."""
    seed: Any = member.get("seed")
    return seed + pick - 1 if _is_whole(seed) else seed


def _merge(base: Any, over: Any) -> Any:
    """Merge mappings deeply. One whose `kind` differs replaces the other, because its keys mean other things."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if over.get("kind", base.get("kind")) != base.get("kind"):
        return over
    merged = dict(base)
    for key, value in over.items():
        is_named = key in PLAIN_NAME_KEYS
        merged[key] = _merge(_as_kind(base.get(key)), _as_kind(value)) if is_named else _merge(base.get(key), value)
    return merged


def _as_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _merge_resources(values: dict[str, Any], member: dict[str, Any]) -> Any:
    return _merge(values.get("resources") or {}, member.get("resources") or {})


def _add_seeds(team_seed: Any, members: list[Any]) -> None:
    for member in members:
        if member.get("seed") is None:
            member["seed"] = derive_seed(team_seed, str(member.get("name")))


def _repeated_names(document: Document, members: list[Any], sources: list[int]) -> Iterator[tuple[int, str]]:
    first_index: dict[str, int] = {}
    for member, index in zip(members, sources, strict=True):
        name = member.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            continue  # an error of its own says so
        if name.lower() in first_index:
            line = document.line(("members", first_index[name.lower()]))
            yield document.line(("members", index, "name")), f"members[{index}].name: {name!r} is taken (line {line})"
        first_index.setdefault(name.lower(), index)


def dotted(where: KeyPath) -> str:
    """Return a path of keys as people write it: members[1].optimizer.lr."""
    text = ""
    for key in where:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text
