"""Pure: Team + packed data + what is already done -> the jobs, each with its signature. No torch, ray or mlflow."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from orchestrator.team import Team
from workers.artifact import MemberArtifact
from workers.data import Store
from workers.errors import Rejected
from workers.job import Job
from workers.spec import MemberSpec, StudentSpec

RECIPE_VERSION = 2  # raise it when the same team gives other weights than before


@dataclass(frozen=True)
class Plan:
    """Every job of the team, full fits first; `done` are the signatures whose artifacts are in the home."""

    team: Team
    store: Store
    jobs: tuple[Job, ...]
    done: frozenset[str]
    searched: Mapping[str, float] = field(default_factory=dict)  # seconds of search that a member's recipe took

    @property
    def todo(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.signature not in self.done)

    def fingerprint(self) -> dict[str, Any]:
        """What a finished sweep's results rest on: where it is the same, there is nothing to do."""
        jobs = {job.label: job.signature for job in self.jobs}
        prices = {"prices": dict(self.team.hourly)} if self.team.hourly else {}
        return {"jobs": jobs, "fusion": list(self.team.fusion), "quorum": self.team.quorum, **prices}

    def settings(self) -> dict[str, str]:
        """What the results rest on, flat, to tell people what changed between two runs."""
        team = self.team.model_dump(mode="json", include={"seed", "data", "train", "fusion", "quorum"})
        members = {m.name: m.science() for m in self.team.recipes}
        return {k: str(v) for k, v in flatten({**team, "members": members, "data content": self.store.digest[:12]}).items()}

    @property
    def student(self) -> Job | None:
        return next((job for job in self.jobs if job.teachers), None)

    def of(self, member: str) -> list[Job]:
        """The full fit, then the fold fits."""
        return self._by_member.get(member, [])

    @cached_property
    def _by_member(self) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {}
        for job in self.jobs:
            found.setdefault(job.member.name, []).append(job)
        return found


def make(team: Team, store: Store, home: Path, import_paths: tuple[str, ...] = ()) -> Plan:
    folds: list[int | None] = [None, *range(team.folds)]
    made = [_job(team, store, home, m, fold, import_paths) for fold in folds for m in team.members]
    if team.student:
        made.append(_student(team, store, home, team.student, import_paths, made))
    followed = {job.after for job in made}
    jobs = tuple(job.model_copy(update={"followed": job.signature in followed}) for job in made)
    done = frozenset(j.signature for j in jobs if MemberArtifact.of(home, j.signature).done)
    return Plan(team, store, jobs, done)


def _job(team: Team, store: Store, home: Path, member: MemberSpec, fold: int | None, import_paths: tuple[str, ...]) -> Job:
    before = _before(member)
    return Job(
        signature=signature(team, store, member, fold, import_paths),
        member=member,
        fold=fold,
        train=team.train.of_fold(fold),
        data=team.data,
        team_seed=team.seed,
        home=home.absolute(),
        store=store.folder.absolute(),
        import_paths=import_paths,
        checkpoint_seconds=team.checkpoint.minutes * 60,
        after=signature(team, store, before, fold, import_paths) if before else None,
    )


def _before(member: MemberSpec) -> MemberSpec | None:
    """The recipe whose fit leaves the checkpoint from which this one's goes on."""
    if member.averaged:
        return member.model_copy(update={"averaged": False})
    if member.packed and member.seed != member.packed[0]:
        return member.model_copy(update={"seed": member.packed[member.packed.index(member.seed) - 1]})
    return member.model_copy(update={"cycle": member.cycle - 1}) if member.cycle > 1 else None


def _student(
    team: Team, store: Store, home: Path, student: StudentSpec, import_paths: tuple[str, ...], members: Sequence[Job]
) -> Job:
    """Learns from the full fits of all members, whatever order they stand in."""
    teachers = tuple(sorted(job.signature for job in members if job.fold is None))
    start = next((job.signature for job in members if job.fold is None and job.member.name == student.start), None)
    own = team.model_copy(update={"train": team.train.model_copy(update={"epochs": student.epochs or team.train.epochs})})
    job = _job(own, store, home, student, None, import_paths)
    found = signature(own, store, student, None, import_paths, teachers, start)
    return job.model_copy(update={"signature": found, "teachers": teachers, "start": start})


def signature(
    team: Team,
    store: Store,
    member: MemberSpec,
    fold: int | None,
    import_paths: tuple[str, ...] = (),
    teachers: tuple[str, ...] = (),
    start: str | None = None,
) -> str:
    """Hash of all that changes a fit's result, and of nothing else (no names, hosts, paths; of resources how many
    processes train together, for they sum in another order)."""
    content = {
        "recipe_version": RECIPE_VERSION,
        "member": member.science(),
        "train": team.train.of_fold(fold).science(),
        "data": store.digest,
        "split": [team.seed, team.data.fuse_fraction, None if store.tested.any() else team.data.test_fraction],
        "fold": None if fold is None else [fold, team.data.folds],
        "weights": _file_sha256(member.weights) if member.weights else None,
        "code": _code_sha256(member.arch.partition(":")[0], import_paths) if ":" in member.arch else None,
        **({"teachers": teachers} if teachers else {}),
        **({"start": start} if start else {}),
        **({"processes": processes} if (processes := member.resources.processes) > 1 else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


@lru_cache
def _file_sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Rejected(f"weights: {path} can't be read ({error.strerror}). Give a state-dict file.") from None


def _code_sha256(module: str, import_paths: tuple[str, ...]) -> str:
    """The user's module as a syntax tree: comments and blank lines change nothing. Nothing is imported."""
    relative = Path(*module.split("."))
    for folder in (*import_paths, *sys.path):
        for path in (Path(folder, relative).with_suffix(".py"), Path(folder, relative, "__init__.py")):
            if path.is_file():
                return hashlib.sha256(ast.dump(_parsed(path)).encode()).hexdigest()
    raise Rejected(f"arch: the module {module} is not found beside the team file or on the Python path.")


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise Rejected(f"{path}:{error.lineno}: not Python ({error.msg}).") from None
    except (OSError, ValueError) as error:
        raise Rejected(f"{path}: can't be read as Python ({error}).") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become JSON."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return flat
