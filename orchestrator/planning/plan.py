"""Plan the jobs of a team: Team + packed data + what is done -> jobs, each with its signature. No torch, Ray or MLflow."""

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

from orchestrator.config.team import Team
from workers.config.job import Job
from workers.config.specs import MemberSpec, StudentSpec
from workers.data.store import Store
from workers.errors import UserInputError
from workers.storage.artifacts import MemberArtifact

RECIPE_VERSION = 2  # raise it when the same team gives other weights than before


@dataclass(frozen=True)
class Plan:
    """Every job of a team.

    Attributes:
        team: The team.
        store: The packed data.
        jobs: The jobs, full trainings first.
        done: Signatures of the jobs whose artifacts are in the home.
        searched: Seconds of search that finding a member's recipe took, by member.
    """

    team: Team
    store: Store
    jobs: tuple[Job, ...]
    done: frozenset[str]
    searched: Mapping[str, float] = field(default_factory=dict)

    @property
    def todo(self) -> tuple[Job, ...]:
        """The jobs that are not done."""
        return tuple(job for job in self.jobs if job.signature not in self.done)

    @property
    def student(self) -> Job | None:
        """The student's job, if there is one."""
        return next((job for job in self.jobs if job.teachers), None)

    def jobs_of(self, member: str) -> list[Job]:
        """Return the jobs of a member: its full training, then its fold trainings."""
        return self._by_member.get(member, [])

    @cached_property
    def _by_member(self) -> dict[str, list[Job]]:
        by_member: dict[str, list[Job]] = {}
        for job in self.jobs:
            by_member.setdefault(job.member.name, []).append(job)
        return by_member

    def fingerprint(self) -> dict[str, Any]:
        """Return what a finished sweep's results rest on: where it is the same, there is nothing to do."""
        jobs = {job.label: job.signature for job in self.jobs}
        prices = {"prices": dict(self.team.hourly)} if self.team.hourly else {}
        return {"jobs": jobs, "fusion": list(self.team.fusion), "quorum": self.team.quorum, **prices}

    def settings(self) -> dict[str, str]:
        """Return the settings that the results rest on, flat, to tell people what changed between two runs."""
        team = self.team.model_dump(mode="json", include={"seed", "data", "train", "fusion", "quorum"})
        members = {m.name: m.fingerprint_fields() for m in self.team.recipes}
        values = {**team, "members": members, "data content": self.store.digest[:12]}
        return {k: str(v) for k, v in flatten(values).items()}


@dataclass(frozen=True)
class Planner:
    """Makes jobs for the members of one team on one data set.

    Attributes:
        team: The team.
        store: The packed data.
        home: The home.
        import_paths: Folders from which the users' own modules are imported.
    """

    team: Team
    store: Store
    home: Path
    import_paths: tuple[str, ...] = ()

    def plan(self) -> Plan:
        """Return all jobs of the team. Raises UserInputError where a file that a member names cannot be read."""
        folds: list[int | None] = [None, *range(self.team.folds)]
        jobs = [self._job(member, fold) for fold in folds for member in self.team.members]
        if self.team.student:
            jobs.append(self._student_job(self.team.student, jobs))
        followed = {job.after for job in jobs}
        marked = tuple(job.model_copy(update={"followed": job.signature in followed}) for job in jobs)
        done = frozenset(j.signature for j in marked if MemberArtifact.in_home(self.home, j.signature).done)
        return Plan(self.team, self.store, marked, done)

    def signature(
        self, member: MemberSpec, fold: int | None = None, teachers: tuple[str, ...] = (), start: str | None = None
    ) -> str:
        """Hash everything that changes a training's result, and nothing else.

        Names, hosts and paths do not count. Of the resources only the number of processes that train together counts, for they
        sum in another order.

        Args:
            member: The recipe.
            fold: The fold that is left out; None for a full training.
            teachers: Signatures of the trainings that a student learns from.
            start: Signature of the training whose weights a student begins from.
        """
        team, data = self.team, self.team.data
        content = {
            "recipe_version": RECIPE_VERSION,
            "member": member.fingerprint_fields(),
            "train": team.train.of_fold(fold).fingerprint_fields(),
            "data": self.store.digest,
            "split": [team.seed, data.fuse_fraction, None if self.store.tested.any() else data.test_fraction],
            "fold": None if fold is None else [fold, data.folds],
            "weights": _file_sha256(member.weights) if member.weights else None,
            "code": _code_sha256(member.arch.partition(":")[0], self.import_paths) if ":" in member.arch else None,
            **({"teachers": teachers} if teachers else {}),
            **({"start": start} if start else {}),
            **({"processes": processes} if (processes := member.resources.processes) > 1 else {}),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]

    def _job(self, member: MemberSpec, fold: int | None) -> Job:
        before = _before(member)
        return Job(
            signature=self.signature(member, fold),
            member=member,
            fold=fold,
            train=self.team.train.of_fold(fold),
            data=self.team.data,
            team_seed=self.team.seed,
            home=self.home.absolute(),
            store=self.store.folder.absolute(),
            import_paths=self.import_paths,
            checkpoint_seconds=self.team.checkpoint.minutes * 60,
            after=self.signature(before, fold) if before else None,
        )

    def _student_job(self, student: StudentSpec, jobs: Sequence[Job]) -> Job:
        """Return the student's job. It learns from the full trainings of all members, whatever their order."""
        full = [job for job in jobs if job.fold is None]
        teachers = tuple(sorted(job.signature for job in full))
        start = next((job.signature for job in full if job.member.name == student.start), None)
        train = self.team.train.model_copy(update={"epochs": student.epochs or self.team.train.epochs})
        team = self.team.model_copy(update={"train": train})
        planner = Planner(team, self.store, self.home, self.import_paths)
        signature = planner.signature(student, None, teachers, start)
        job = planner._job(student, None)
        return job.model_copy(update={"signature": signature, "teachers": teachers, "start": start})


def _before(member: MemberSpec) -> MemberSpec | None:
    """Return the recipe whose training leaves the checkpoint from which this one's goes on."""
    if member.averaged:
        return member.model_copy(update={"averaged": False})
    if member.packed and member.seed != member.packed[0]:
        return member.model_copy(update={"seed": member.packed[member.packed.index(member.seed) - 1]})
    return member.model_copy(update={"cycle": member.cycle - 1}) if member.cycle > 1 else None


@lru_cache
def _file_sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserInputError(f"weights: {path} can't be read ({error.strerror}). Give a state-dict file.") from None


def _code_sha256(module: str, import_paths: tuple[str, ...]) -> str:
    """Hash the user's module as a syntax tree: comments and blank lines change nothing. Nothing is imported."""
    relative = Path(*module.split("."))
    for folder in (*import_paths, *sys.path):
        for path in (Path(folder, relative).with_suffix(".py"), Path(folder, relative, "__init__.py")):
            if path.is_file():
                return hashlib.sha256(ast.dump(_parse_python(path)).encode()).hexdigest()
    raise UserInputError(f"arch: the module {module} is not found beside the team file or on the Python path.")


def _parse_python(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserInputError(f"{path}:{error.lineno}: not Python ({error.msg}).") from None
    except (OSError, ValueError) as error:
        raise UserInputError(f"{path}: can't be read as Python ({error}).") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Flatten nested mappings: {"a": {"b": 1}} -> {"a.b": 1}. Lists become JSON."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return flat
