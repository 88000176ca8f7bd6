"""Record recipe searches: their settings, their trials, and the team with the recipes found.

`HOME/searches/SIGNATURE/search.json` is the source of truth. orchestrator/execution/tuning.py runs trials and resumes from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from filelock import Timeout
from pydantic import BaseModel

from orchestrator.planning.plan import Planner
from workers.config.job import Job, JobMember, derive_seed
from workers.config.search_space import Choice, SearchSpec
from workers.config.specs import MemberSpec
from workers.errors import ConclaveError
from workers.storage.files import acquire_now, file_lock
from workers.storage.state_file import read_state, write_state

ENDED = ("done", "stopped", "failed")  # completed; stopped early because others were better; raised an error
DIVERGED = 1e9  # loss reported for a diverged trial


class Trial(BaseModel):
    """One choice of settings and the progress of its training, as stored in search.json.

    Attributes:
        choice: The settings.
        state: "running", or one of ENDED.
        epochs: Loss and accuracy on the held-out rows, and seconds, of each epoch.
    """

    choice: Choice
    state: str = "running"
    epochs: list[dict[str, float]] = []

    @property
    def has_ended(self) -> bool:
        """True if the trial has ended."""
        return self.state in ENDED

    @property
    def has_diverged(self) -> bool:
        """True if its loss became infinite, or no number."""
        return bool(self.epochs) and self.epochs[-1]["loss"] >= DIVERGED

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key: more epochs first, then lower loss, since losses after different numbers of epochs don't compare."""
        return -len(self.epochs), self.epochs[-1]["loss"]


class SearchRecord(BaseModel):
    """The content of search.json.

    Attributes:
        member: The member's name in the team file.
        space: The search space.
        trials: The trials by name.
    """

    member: str = ""
    space: dict[str, object] = {}
    trials: dict[str, Trial]


@dataclass
class Search:
    """All trials of one search.

    Attributes:
        planner: The team, the data and the home.
        recipe: The first of the searched recipes.
        trials: The trials by name.
    """

    planner: Planner
    recipe: MemberSpec
    trials: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.read()

    def read(self) -> None:
        """Read the record. If too few trials succeeded, forget the failed ones: their cause may be fixed by now."""
        record = read_state(self.file, SearchRecord, "Remove its folder to restart the search.")
        if record is None:
            return
        self.trials = record.trials
        if not self.left and len(self._successful) < self.space.keep:
            self.trials = {name: trial for name, trial in self.trials.items() if trial.state != "failed"}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Allow one process to search at a time, resuming earlier trials. Raises ConclaveError if another one searches."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = file_lock(self.file.parent / ".lock")
        try:
            acquire_now(lock)
        except Timeout:
            raise ConclaveError(
                f"search of {self.label}: another sweep is running this search. Wait for it, then run again: its trials are kept."
            ) from None
        try:
            self.read()
            yield
        finally:
            lock.release()

    @property
    def space(self) -> SearchSpec:
        """The search space."""
        assert self.recipe.search
        return self.recipe.search

    @property
    def epochs(self) -> int:
        """Maximum number of epochs of a trial."""
        return self.space.epochs or self.planner.team.train.epochs

    @cached_property
    def signature(self) -> str:
        """Hash of the recipe, its search space and the data. The seed and the number of kept recipes do not count."""
        space = self.space.model_copy(update={"keep": 1})
        recipe = self.recipe.model_copy(update={"seed": 0, "pick": 1, "search": space})
        return self.planner.signature(recipe, recipe.members[0])

    @property
    def file(self) -> Path:
        """Path of search.json."""
        return self.planner.home / "searches" / self.signature / "search.json"

    @property
    def label(self) -> str:
        """The member's name in the team file."""
        return self.recipe.name.removesuffix("-1") if self.space.keep > 1 else self.recipe.name

    def job(self, choice: Choice) -> Job:
        """Return a trial as a job. Its signature is the trial's name, and its home is the search's folder."""
        train = self.planner.team.train.model_copy(update={"epochs": self.epochs, "stop": None, "fold_epochs": 1.0})
        name = hashlib.sha256(json.dumps([self.signature, choice], sort_keys=True).encode()).hexdigest()[:20]
        recipe = self.recipe.chosen(choice).model_copy(update={"seed": derive_seed(self.signature, "trial")})
        [member] = recipe.members
        team = self.planner.team.model_copy(update={"train": train})
        planner = replace(self.planner, team=team, home=self.file.parent)
        return planner.job(recipe).model_copy(update={"members": (JobMember(**dict(member), signature=name),)})

    def add(self, choice: Choice) -> str:
        """Record that a trial starts or resumes, and return its name."""
        [name] = self.job(choice).signatures
        self.trials[name] = Trial(choice=choice)
        self.save()
        return name

    def save(self) -> None:
        """Write the record."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        space = self.space.model_dump(mode="json")
        write_state(self.file, SearchRecord(member=self.label, space=space, trials=self.trials))

    @property
    def left(self) -> int:
        """Number of trials left to finish."""
        return max(0, self.space.trials - sum(trial.has_ended for trial in self.trials.values()))

    @property
    def seconds(self) -> float:
        """Training seconds of all trials."""
        return sum(point["seconds"] for trial in self.trials.values() for point in trial.epochs)

    def best(self) -> list[Choice]:
        """Return the choices to keep, best first. Raises ConclaveError if too few trials succeeded."""
        if self.trials and all(trial.has_diverged for trial in self.trials.values()):
            lr = self.space.lr
            other = f"a lower range of lr than {lr[0]:g} to {lr[1]:g}" if lr else "another range"
            raise ConclaveError(
                f"search of {self.label}: all {len(self.trials)} trials diverged: their losses became infinite. Nothing was "
                f"trained with their settings. Give it {other}."
            )
        ranked = sorted(self._successful, key=lambda t: t.rank)
        if len(ranked) < self.space.keep:
            raise ConclaveError(
                f"search of {self.label}: {len(ranked)} of {len(self.trials)} trials came to an end without an error, and "
                f"{self.space.keep} are to be kept. Run again to retry the failed ones."
            )
        return [trial.choice for trial in ranked[: self.space.keep]]

    @property
    def _successful(self) -> list[Trial]:
        ended = [trial for trial in self.trials.values() if trial.epochs and trial.state in ("done", "stopped")]
        return [trial for trial in ended if not trial.has_diverged]


@dataclass(frozen=True)
class ResolvedRecipes:
    """A team whose recipes are all known.

    Attributes:
        planner: The planner of that team.
        searches: The searches.
        seconds: Each searched member's share of its search time, in seconds.
    """

    planner: Planner
    searches: list[Search]
    seconds: Mapping[str, float]


def find_searches(planner: Planner) -> dict[str, Search]:
    """Return the team's searches by signature, in the team's order."""
    searches: dict[str, Search] = {}
    for recipe in planner.team.trainings:
        if recipe.search and recipe.pick == 1:
            search = Search(planner, recipe)
            searches.setdefault(search.signature, search)
    return searches


def resolve_recipes(planner: Planner, run_search: Callable[[Search], None]) -> ResolvedRecipes:
    """Replace searched recipes by the choices that their searches found.

    Args:
        planner: The team, the data and the home.
        run_search: Runs the remaining trials of a search.

    Raises:
        ConclaveError: If a search did not find enough recipes.
    """
    searches = find_searches(planner)
    for search in searches.values():
        if search.left:
            with search.locked():
                if search.left:
                    run_search(search)
    by_recipe = {r.name: searches[Search(planner, r).signature] for r in planner.team.trainings if r.search}
    trainings = [r.chosen(by_recipe[r.name].best()[r.pick - 1]) if r.search else r for r in planner.team.trainings]
    seconds = {name: search.seconds / search.space.keep for name, search in by_recipe.items()}
    resolved = replace(planner, team=planner.team.model_copy(update={"trainings": tuple(trainings)}))
    return ResolvedRecipes(resolved, list(searches.values()), seconds)


def known_recipes(planner: Planner) -> ResolvedRecipes:
    """Return the resolved team, or the unresolved one if searches are unfinished. Runs no trials."""
    undone = [search for search in find_searches(planner).values() if search.left]
    return ResolvedRecipes(planner, undone, {}) if undone else resolve_recipes(planner, run_no_search)


def run_no_search(search: Search) -> None:
    """Do nothing: every search is done."""


def describe_choice(choice: Choice) -> str:
    """Return a choice in words."""
    return ", ".join(f"{key} {value if isinstance(value, str) else format(value, 'g')}" for key, value in choice.items())
