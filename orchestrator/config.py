"""team.yaml -> Team: frozen and strict. Every error names key, line, what was expected and the nearest known key."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from fusion.names import DEFAULT, STACKS, Fusion
from orchestrator import teamfile
from orchestrator.teamfile import Document, Path_
from workers.errors import Rejected
from workers.spec import NAME, DataSpec, MemberSpec, Name, Resources, Strict, TrainSpec, derive_seed


def _somebody(value: Any) -> Any:
    if value == ():
        raise ValueError("a team needs at least one member")
    return value


class Tracking(Strict):
    uri: str | None = None
    experiment: str | None = None
    required: bool = True  # false: where the server is away, track in the home and say so


class Retries(Strict):
    """How often a fit is tried again, by cause; null is without limit."""

    errors: int | None = Field(3, ge=0)
    preemptions: int | None = Field(None, ge=0)  # drained and lost nodes
    oom: int | None = Field(2, ge=0)  # killed for the node's memory

    def allows(self, cause: str, times: int) -> bool:
        """Whether a fit that failed `times` times for this cause is tried again."""
        limit = {"errors": self.errors, "preemptions": self.preemptions, "oom": self.oom}[cause]
        return limit is None or times <= limit


def _errors(value: Any) -> Any:
    """`2` stands for `{errors: 2}`."""
    return {"errors": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Checkpoint(Strict):
    """A fit writes a checkpoint after every epoch, and within an epoch every so many minutes."""

    minutes: float = Field(5, gt=0)


class Heartbeat(Strict):
    """A trainer that gives no sign of life for `seconds`, or finishes no step for `stall_minutes`, is ended and retried."""

    seconds: float = Field(60, gt=0)
    stall_minutes: float = Field(30, gt=0)


class OwnServer(Strict):
    """A machine of one's own: what an hour of one of its trainers costs, by amortisation."""

    price: float = Field(gt=0)
    years: float = Field(3, gt=0)
    use: float = Field(0.3, gt=0, le=1)  # share of the hours in which it works
    trainers: float = Field(1, gt=0)  # at once

    @property
    def hour(self) -> float:
        return self.price / (self.years * 365.25 * 24 * self.use * self.trainers)


class Team(Strict):
    """A whole team, resolved: members are expanded, merged with the defaults, and seeded."""

    version: Literal[1] = 1
    name: Name
    seed: int = Field(0, ge=0, lt=2**32)
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    members: Annotated[tuple[MemberSpec, ...], BeforeValidator(_somebody)]
    fusion: tuple[Fusion, ...] = Field(DEFAULT, min_length=1)
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    quorum: int = Field(2, ge=1)
    prices: dict[Name, Annotated[float, Field(ge=0)] | OwnServer] = Field({})
    retries: Annotated[Retries, BeforeValidator(_errors)] = Retries()
    checkpoint: Checkpoint = Checkpoint()
    heartbeat: Heartbeat = Heartbeat()

    @property
    def hourly(self) -> dict[str, float]:
        """The price of one trainer for an hour, by kind of machine."""
        return {name: price.hour if isinstance(price, OwnServer) else price for name, price in self.prices.items()}

    @property
    def folds(self) -> int:
        """How many fold fits each member makes: none where no fusion learns from them."""
        return self.data.folds if set(STACKS) & set(self.fusion) else 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.folds == 1:
            raise ValueError("data.folds is 0 (no fold fits) or at least 2")
        if len(set(self.fusion)) < len(self.fusion):
            raise ValueError("fusion names a method twice")
        if "stack_bag" in self.fusion and not self.data.folds:
            raise ValueError("fusion: stack_bag is a bag of fold fits: set data.folds to 2 or more")
        for member in self.members:
            if member.cycle > member.snapshots:
                raise ValueError(f"member {member.name}: cycle {member.cycle} of {member.snapshots} snapshots")
            if member.snapshots > (least := min(self.train.of_fold(fold).epochs for fold in (None, 0))):
                raise ValueError(f"member {member.name}: {member.snapshots} snapshots need as many epochs; a fit has {least}")
            if member.snapshots > 1 and self.train.stop:
                raise ValueError(f"member {member.name}: snapshots and train.stop don't go together: a cycle runs to its end")
        if self.data.dataset == "folder" and self.data.root is None:
            raise ValueError("data.root is needed with `dataset: folder`: the folder or archive of images")
        return self


# What a team must share, and why: a member that sets one of these is told.
SHARED = {
    **dict.fromkeys(DataSpec.model_fields, "fusion compares members row by row, so all must see the same rows"),
    **dict.fromkeys(TrainSpec.model_fields, "costs and out-of-fold outputs compare only between equal trainings"),
    "data": "fusion compares members row by row, so all must see the same rows",
    "train": "costs and out-of-fold outputs compare only between equal trainings",
}


def load(path: Path, data: Path | None = None) -> Team:
    """Read and check a team file. `data` overrides data.root. Raises Rejected with every error at once."""
    return resolve(teamfile.read(path), data)


def resolve(document: Document, data: Path | None = None) -> Team:
    values = dict(document.values)
    problems: list[tuple[int, str]] = []
    values, sources = _expand(document, values, problems)
    team: Team | None = None
    try:
        team = Team.model_validate(values)
    except ValidationError as error:
        problems += [_problem(document, details, sources) for details in error.errors()]
    if problems or team is None:
        unique = sorted(dict.fromkeys(problems))
        raise Rejected("\n".join(f"{document.path}:{line}: {text}" for line, text in unique))
    return _located(team, document.path, data)


def _located(team: Team, path: Path, data: Path | None) -> Team:
    """Resolve relative paths against the team file's folder."""
    folder = path.resolve().parent
    root = data.resolve() if data else team.data.root and (folder / team.data.root).resolve()
    members = tuple(m.model_copy(update={"weights": (folder / m.weights).resolve()}) if m.weights else m for m in team.members)
    return team.model_copy(
        update={
            "data": team.data.model_copy(update={"root": root}),
            "members": members,
            "quorum": min(team.quorum, len(members)),
        }
    )


def _expand(document: Document, values: dict[str, Any], problems: list[tuple[int, str]]) -> tuple[dict[str, Any], list[int]]:
    """Merge defaults into members, expand `count`, derive seeds. Also gives each member's index in the file."""
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
    members, sources = _snapshots(members, sources)
    for line, text in _twice(document, members, sources):
        problems.append((line, text))
    values["members"] = tuple(members)
    return values, sources


def _refuse_shared(document: Document, where: Path_, entry: dict[str, Any], problems: list[tuple[int, str]]) -> None:
    for key in [k for k in entry if k in SHARED]:
        section = key if key in ("data", "train") else "data" if key in DataSpec.model_fields else "train"
        problems.append(
            (
                document.line((*where, key)),
                f"{_dotted((*where, key))}: can't differ between members: {SHARED[key]}. Set it under `{section}:`",
            )
        )
        del entry[key]


def _copies(
    document: Document, where: Path_, member: dict[str, Any], problems: list[tuple[int, str]]
) -> Iterator[dict[str, Any]]:
    """`{name: seeds, count: 3, seed: s}` -> seeds-1, seeds-2, seeds-3 with seeds s, s+1, s+2."""
    if "count" not in member:
        yield member
        return
    count = member.pop("count")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1000:
        problems.append((document.line((*where, "count")), f"{_dotted(where)}.count: expected a whole number, 1 to 1000"))
        count = 1
    for i in range(count):
        copy = dict(member)
        if isinstance(member.get("name"), str):
            copy["name"] = f"{member['name']}-{i + 1}"
        if isinstance(member.get("seed"), int):
            copy["seed"] = member["seed"] + i
        yield copy


def _snapshots(members: list[Any], sources: list[int]) -> tuple[list[Any], list[int]]:
    """`{name: cyclic, snapshots: 3}` -> cyclic.1, cyclic.2, cyclic.3, each going on from the one before."""
    found: list[Any] = []
    origins: list[int] = []
    for member, source in zip(members, sources, strict=True):
        count = member.get("snapshots")
        many = isinstance(count, int) and not isinstance(count, bool) and 1 < count <= 100 and "cycle" not in member
        for k in range(1, count + 1) if many else (None,):
            named = k is not None and isinstance(member.get("name"), str)
            found.append({**member, "cycle": k, **({"name": f"{member['name']}.{k}"} if named else {})} if k else member)
            origins.append(source)
    return found, origins


def _merge(base: Any, over: Any) -> Any:
    """Deep merge; a mapping whose `kind` differs replaces the other, because its keys mean other things."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if over.get("kind", base.get("kind")) != base.get("kind"):
        return over
    merged = dict(base)
    for key, value in over.items():
        plain = key == "optimizer"  # the one member key for which a plain name stands for a mapping
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


def _problem(document: Document, details: ErrorDetails, sources: list[int]) -> tuple[int, str]:
    known = list(_known_keys(details["loc"][:-1]))
    where = _in_file(document, _source(details["loc"], sources))
    kind = details["type"]
    given = details.get("input")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(details["loc"][-1]), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return document.line(where), f"{_dotted(where)}: unknown key; {hint}"
    if kind == "missing":
        return document.line(where[:-1]), f"{_dotted(where)}: is needed and not there"
    text = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    text = text[0].lower() + text[1:]
    shown = "" if isinstance(given, dict | tuple) or kind == "value_error" else f"{given!r} "
    place = f"{_dotted(where)}: " if where else ""
    return document.line(where), f"{place}{shown}{text}"


def _source(loc: tuple[int | str, ...], sources: list[int]) -> Path_:
    """The expanded members' index -> the index in the file."""
    if len(loc) > 1 and loc[0] == "members" and isinstance(loc[1], int) and loc[1] < len(sources):
        return ("members", sources[loc[1]], *loc[2:])
    return loc


def _in_file(document: Document, loc: Path_) -> Path_:
    """Drop what pydantic adds (a union's tag), and point to the defaults or the team where the key came from there."""
    where: Path_ = ()
    for position, key in enumerate(loc):
        last = position == len(loc) - 1
        if key in ("sgd", "adamw", "step", "cosine", "one_cycle") and not last:
            continue
        if key in ("sgd", "adamw", "step", "cosine", "one_cycle") and last and not document.has((*where, key)):
            continue
        where = (*where, key)
    if len(where) > 2 and where[0] == "members" and not document.has(where):
        for other in (("defaults", *where[2:]), where[2:] if where[2] == "resources" else ()):
            if other and document.has(other):
                return other
    return where


def _dotted(where: Path_) -> str:
    text = ""
    for key in where:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _known_keys(loc: tuple[int | str, ...]) -> Iterator[str]:
    """The keys that may stand at `loc`, found by walking the models' annotations."""
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
    """The model classes inside an annotation: X, X | Y, tuple[X, ...], Annotated[X, ...]."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, tuple, Annotated):
        return [m for a in typing.get_args(annotation) if not isinstance(a, str) for m in _models(a)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
