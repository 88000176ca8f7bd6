"""Plan the jobs of a team: team, packed data and finished artifacts in, signed jobs out. No torch, Ray or MLflow."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

from orchestrator.config.team import Team
from orchestrator.planning.fit_content import FitContent
from orchestrator.results import Fingerprint
from workers.config.architectures import split_arch
from workers.config.job import Job, JobMember
from workers.config.specs import MemberSpec, StudentSpec, TrainedMember
from workers.data.splits import Split, get_split
from workers.data.store import Store
from workers.errors import UserInputError
from workers.storage.artifacts import MemberArtifact
from workers.storage.files import file_sha256

RECIPE_VERSION = 3  # increase it when the same team would train to different weights


@dataclass(frozen=True)
class PlannedMember:
    """A member of a job, and the artifact that the job publishes for it.

    Attributes:
        job: The job that publishes it.
        member: The member.
    """

    job: Job
    member: JobMember

    @property
    def signature(self) -> str:
        """The signature of the artifact."""
        return self.member.signature

    @property
    def label(self) -> str:
        """The member's name, with the fold of a fold training."""
        return self.job.label_of(self.member)

    @property
    def artifact(self) -> MemberArtifact:
        """The artifact, which may not exist yet."""
        return MemberArtifact.in_home(self.job.home, self.signature)


@dataclass(frozen=True)
class Plan:
    """Every job of a team.

    Attributes:
        team: The team.
        store: The packed data.
        split: The split of its rows.
        jobs: The jobs, full trainings first.
        members: The members that the jobs publish, full trainings first, in the team's order.
        done: Signatures of the artifacts in the home.
        searched: Search seconds of each member's recipe, by member.
    """

    team: Team
    store: Store
    split: Split
    jobs: tuple[Job, ...]
    members: tuple[PlannedMember, ...]
    done: frozenset[str]
    searched: Mapping[str, float] = field(default_factory=dict)

    @property
    def todo(self) -> tuple[Job, ...]:
        """The jobs with unpublished members."""
        return tuple(job for job in self.jobs if not self.done.issuperset(job.signatures))

    @property
    def student(self) -> PlannedMember | None:
        """The student, if there is one."""
        return next((planned for planned in self.members if planned.job.teachers), None)

    def of_member(self, name: str) -> list[PlannedMember]:
        """Return a member's planned trainings: the full one, then the folds."""
        return self._by_name.get(name, [])

    @cached_property
    def _by_name(self) -> dict[str, list[PlannedMember]]:
        by_name: dict[str, list[PlannedMember]] = {}
        for planned in self.members:
            by_name.setdefault(planned.member.name, []).append(planned)
        return by_name

    def refreshed(self) -> Plan:
        """Return the plan with `done` read again from the home."""
        return replace(self, done=frozenset(planned.signature for planned in self.members if planned.artifact.done))

    def fingerprint(self) -> Fingerprint:
        """Return the inputs of a finished sweep's results. If they are unchanged, there is nothing to do."""
        jobs = {planned.label: planned.signature for planned in self.members}
        team = self.team
        return Fingerprint(
            jobs=jobs,
            fusion=list(team.fusion),
            quorum=team.quorum,
            metric=team.metric,
            data=f"{self.store.digest} {self.split.key}",
            tolerance=team.recommend.tolerance,
            prices=dict(team.prices),
        )

    def settings(self) -> dict[str, str]:
        """Return the settings behind the results, flattened, to report changes between two runs."""
        named = {"seed", "train", "fusion", "quorum", "metric", "recommend"}
        team = self.team.model_dump(mode="json", include=named)
        student = [self.team.student] if self.team.student else []
        members = {recipe.name: recipe.fingerprint_fields() for recipe in (*self.team.members, *student)}
        values = {**team, "data": self.team.data.described(), "members": members, "data content": self.store.digest[:12]}
        return {k: str(v) for k, v in flatten(values).items()}


@dataclass(frozen=True)
class Planner:
    """Makes jobs for the members of one team on one data set.

    Attributes:
        team: The team.
        store: The packed data.
        home: The home.
        import_paths: Folders from which custom modules are imported.
    """

    team: Team
    store: Store
    home: Path
    import_paths: tuple[str, ...] = ()

    @cached_property
    def split(self) -> Split:
        """The split of the data: what the home knows of its rows, and a draw for the others."""
        return get_split(self.store, self.team.data, self.team.seed, self.home)

    @cached_property
    def _content(self) -> FitContent:
        return FitContent(self.store, self.split)

    def plan(self) -> Plan:
        """Return all jobs of the team. Raises UserInputError if a member's file cannot be read."""
        folds: list[int | None] = [None, *range(self.team.folds)]
        jobs = [self.job(recipe, fold) for fold in folds for recipe in self.team.trainings]
        if self.team.student:
            jobs.append(self._student_job(self.team.student, jobs))
        members = tuple(PlannedMember(job, member) for job in jobs for member in job.members)
        return Plan(self.team, self.store, self.split, tuple(_without_repeated(jobs)), members, frozenset()).refreshed()

    def job(self, recipe: MemberSpec, fold: int | None = None, teachers: tuple[str, ...] = (), start: str | None = None) -> Job:
        """Return the job of a training. The arguments are those of `signature`."""
        signed = [(member, self.signature(recipe, member, fold, teachers, start)) for member in recipe.members]
        return Job(
            recipe=recipe,
            members=tuple(JobMember(**dict(member), signature=signature) for member, signature in signed),
            fold=fold,
            train=self.team.train.of_fold(fold),
            data=self.team.data,
            team_seed=self.team.seed,
            home=self.home.absolute(),
            store=self.store.folder.absolute(),
            split=self.split.key,
            import_paths=self.import_paths,
            checkpoint_seconds=self.team.checkpoint.minutes * 60,
            teachers=teachers,
            start=start,
            weights_sha256=_weights_sha256(recipe.weights) if recipe.weights else None,
        )

    def signature(
        self,
        recipe: MemberSpec,
        member: TrainedMember,
        fold: int | None = None,
        teachers: tuple[str, ...] = (),
        start: str | None = None,
    ) -> str:
        """Hash everything that changes a member's weights, and nothing else.

        Names, hosts and paths do not count. The only resource that counts is the number of processes that train together,
        because it changes the order of summation.

        Args:
            recipe: The recipe of the training.
            member: The member of the training.
            fold: The held-out fold; None for a full training.
            teachers: Signatures of the members that a student learns from.
            start: Signature of the member whose weights a student starts from.
        """
        team = self.team
        train = team.train.of_fold(fold)
        source, name = split_arch(recipe.arch)
        code = source.module(name)
        references = sorted({*recipe.references, *team.train.references})
        own = {reference: _code_sha256(reference.partition(":")[0], self.import_paths, reference) for reference in references}
        content = {
            "recipe_version": RECIPE_VERSION,
            "member": recipe.fingerprint_fields(member),
            "train": train.fingerprint_fields(),
            "data": self._content.digest(fold, has_groups=bool(train.stop or recipe.search)),
            "team_seed": team.seed if train.stop or recipe.search else None,  # draws the rows that are held out
            "fold": fold,
            "weights": _weights_sha256(recipe.weights) if recipe.weights else None,
            "code": _code_sha256(code, self.import_paths, "arch") if code else None,
            **({"own": own} if own else {}),
            **({"teachers": teachers} if teachers else {}),
            **({"start": start} if start else {}),
            **({"processes": processes} if (processes := recipe.resources.processes) > 1 else {}),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]

    def _student_job(self, student: StudentSpec, jobs: Sequence[Job]) -> Job:
        """Return the student's job. It learns from the full trainings of all members, whatever their order."""
        full = {member.name: member.signature for job in jobs if job.fold is None for member in job.members}
        start = full[student.start] if student.start else None
        train = self.team.train.model_copy(update={"epochs": student.epochs or self.team.train.epochs})
        planner = replace(self, team=self.team.model_copy(update={"train": train}))
        return planner.job(student, None, tuple(sorted(full.values())), start)


def _without_repeated(jobs: Sequence[Job]) -> Iterator[Job]:
    """Yield jobs, skipping those whose members another job also publishes: equal recipes are trained once."""
    publishers: dict[str, list[Job]] = {}
    for job in jobs:
        for signature in job.signatures:
            publishers.setdefault(signature, []).append(job)
    for job in jobs:
        rivals = publishers[job.signatures[0]]
        first_of_equals = next(other for other in rivals if other.key == job.key)
        if first_of_equals is job and not any({*job.signatures} < {*other.signatures} for other in rivals):
            yield job


@lru_cache
def _weights_sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserInputError(f"weights: {path} can't be read ({error.strerror}). Give a state-dict file.") from None


def _code_sha256(module: str, import_paths: tuple[str, ...], key: str) -> str:
    """Hash the syntax trees of a custom module and of the modules in the team's folder that it imports, without importing any.

    Comments and blank lines don't count.
    """
    path = _module_path(module, (*import_paths, *sys.path))
    if path is None:
        raise UserInputError(f"{key}: module {module} not found in the team file's folder or on the Python path.")
    trees, waiting = dict[str, ast.Module](), [(module, path)]
    while waiting:
        name, path = waiting.pop()
        if name in trees:
            continue
        trees[name] = _parse_python(path)
        for imported in _imported_names(trees[name], name if path.name == "__init__.py" else name.rpartition(".")[0]):
            own = _module_path(imported, import_paths)
            waiting += [(imported, own)] if own else []
    return hashlib.sha256(
        "".join(ast.dump(trees[name]) for name in (module, *sorted(trees.keys() - {module}))).encode()
    ).hexdigest()


def _module_path(module: str, folders: Sequence[str]) -> Path | None:
    """Return the file of a module below one of these folders, or None."""
    relative = Path(*module.split("."))
    paths = (
        path for folder in folders for path in (Path(folder, relative).with_suffix(".py"), Path(folder, relative, "__init__.py"))
    )
    return next((path for path in paths if path.is_file()), None)


def _imported_names(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the names of the modules that a module may import: also each name of `from x import name`, which may be one.

    Args:
        tree: The module's syntax tree.
        package: The package that the module is in, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (name for name in (base, *(f"{base}.{alias.name}" for alias in node.names)) if name.strip("."))


def _parse_python(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserInputError(f"{path}:{error.lineno}: not Python ({error.msg}).") from None
    except (OSError, ValueError) as error:
        raise UserInputError(f"{path}: can't be read as Python ({error}).") from None


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flatten nested mappings: {"a": {"b": 1}} -> {"a.b": 1}. Lists become JSON."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return flat
