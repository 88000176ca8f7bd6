"""Keep the records of searches for recipes: what is searched, what was tried, and the team with what was found.

`HOME/searches/SIGNATURE/search.json` is the truth of what is done. Whoever runs trials (orchestrator/execution/tuning.py) goes on
from it.
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
from workers.storage.files import file_lock
from workers.storage.state_file import read_state, write_state

ENDED = ("done", "stopped", "failed")  # by itself; early, because others were better; with an error
Point = Mapping[str, float]  # of an epoch: loss and accuracy on the rows set apart, seconds


@dataclass
class Trial:
    """One choice, and how far its training came.

    Attributes:
        choice: The settings.
        state: "running", or one of ENDED.
        epochs: A point for each epoch.
    """

    choice: Choice
    state: str = "running"
    epochs: list[Point] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        """True if the trial came to an end."""
        return self.state in ENDED

    @property
    def rank(self) -> tuple[int, float]:
        """The key to sort trials by: more epochs first, then a lower loss, for losses of fewer epochs don't compare."""
        return -len(self.epochs), self.epochs[-1]["loss"]


class TrialRecord(BaseModel):
    """A trial as it is written: see `Trial`."""

    choice: Choice
    state: str
    epochs: list[dict[str, float]]


class SearchRecord(BaseModel):
    """The content of search.json.

    Attributes:
        member: The member's name in the team file.
        space: The settings that may be tried.
        trials: The trials by name.
    """

    member: str = ""
    space: dict[str, object] = {}
    trials: dict[str, TrialRecord]


@dataclass
class Search:
    """All trials of one search.

    Attributes:
        planner: The team, the data and the home.
        recipe: The first of the recipes that are searched.
        trials: The trials by name.
    """

    planner: Planner
    recipe: MemberSpec
    trials: dict[str, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.read()

    def read(self) -> None:
        """Read the record. Failed trials count as not tried where too few others succeeded: their cause may be mended."""
        record = read_state(self.file, SearchRecord, "Remove its folder, and the search begins anew.")
        if record is None:
            return
        self.trials = {name: Trial(one.choice, one.state, [*one.epochs]) for name, one in record.trials.items()}
        if not self.left and len(self._successful) < self.space.keep:
            self.trials = {name: trial for name, trial in self.trials.items() if trial.state != "failed"}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let only one process search at a time, from what others left. Raises ConclaveError while another one searches."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file_lock(self.file.parent / ".lock", timeout=0):
                self.read()
                yield
        except Timeout:
            raise ConclaveError(
                f"search of {self.label}: another sweep is running this search. Wait for it, then run again: its trials are kept."
            ) from None

    @property
    def space(self) -> SearchSpec:
        """The settings that may be tried."""
        assert self.recipe.search
        return self.recipe.search

    @property
    def epochs(self) -> int:
        """The most epochs of a trial."""
        return self.space.epochs or self.planner.team.train.epochs

    @cached_property
    def signature(self) -> str:
        """Hash of what is tried on which data: neither a member's seed nor the number of kept recipes counts."""
        space = self.space.model_copy(update={"keep": 1})
        recipe = self.recipe.model_copy(update={"seed": 0, "pick": 1, "search": space})
        return self.planner.signature(recipe, recipe.members[0])

    @property
    def file(self) -> Path:
        """The record."""
        return self.planner.home / "searches" / self.signature / "search.json"

    @property
    def label(self) -> str:
        """The member's name in the team file."""
        return self.recipe.name.removesuffix("-1") if self.space.keep > 1 else self.recipe.name

    def job(self, choice: Choice) -> Job:
        """Return a trial as a job. Its signature is the trial's name, and its home is the search's own folder."""
        train = self.planner.team.train.model_copy(update={"epochs": self.epochs, "stop": None, "fold_epochs": 1.0})
        name = hashlib.sha256(json.dumps([self.signature, choice], sort_keys=True).encode()).hexdigest()[:20]
        recipe = self.recipe.chosen(choice).model_copy(update={"seed": derive_seed(self.signature, "trial")})
        [member] = recipe.members
        team = self.planner.team.model_copy(update={"train": train})
        planner = replace(self.planner, team=team, home=self.file.parent)
        return planner.job(recipe).model_copy(update={"members": (JobMember(**dict(member), signature=name),)})

    def add(self, choice: Choice) -> str:
        """Record that a trial begins, or goes on; return its name."""
        [name] = self.job(choice).signatures
        self.trials[name] = Trial(choice)
        self.save()
        return name

    def save(self) -> None:
        """Write the record."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        trials = {n: TrialRecord(choice=t.choice, state=t.state, epochs=list(t.epochs)) for n, t in self.trials.items()}
        space = self.space.model_dump(mode="json")
        write_state(self.file, SearchRecord(member=self.label, space=space, trials=trials))

    @property
    def left(self) -> int:
        """The number of trials that have still to come to an end."""
        return max(0, self.space.trials - sum(trial.has_ended for trial in self.trials.values()))

    @property
    def seconds(self) -> float:
        """Training seconds of all trials."""
        return sum(point["seconds"] for trial in self.trials.values() for point in trial.epochs)

    def best(self) -> list[Choice]:
        """Return the choices to keep, the best first. Raises ConclaveError where too few trials succeeded."""
        ranked = sorted(self._successful, key=lambda t: t.rank)
        if len(ranked) < self.space.keep:
            raise ConclaveError(
                f"search of {self.label}: {len(ranked)} of {len(self.trials)} trials came to an end without an error, and "
                f"{self.space.keep} are to be kept. Run again: those that failed are tried again."
            )
        return [trial.choice for trial in ranked[: self.space.keep]]

    @property
    def _successful(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.epochs and trial.state in ("done", "stopped")]


@dataclass(frozen=True)
class ResolvedRecipes:
    """A team whose recipes are all known.

    Attributes:
        planner: The planner of that team.
        searches: The searches.
        seconds: Each searched member's share of the seconds that its search took.
    """

    planner: Planner
    searches: list[Search]
    seconds: Mapping[str, float]


def find_searches(planner: Planner) -> dict[str, Search]:
    """Return what has to be searched, by signature, in the team's order."""
    searches: dict[str, Search] = {}
    for recipe in planner.team.trainings:
        if recipe.search and recipe.pick == 1:
            search = Search(planner, recipe)
            searches.setdefault(search.signature, search)
    return searches


def resolve_recipes(planner: Planner, run_search: Callable[[Search], None]) -> ResolvedRecipes:
    """Put what searches found in the place of what was to be searched.

    Args:
        planner: The team, the data and the home.
        run_search: Runs the trials of a search that is not done.

    Raises:
        ConclaveError: If a search did not find enough recipes.
    """
    searches = find_searches(planner)
    for search in searches.values():
        if search.left:
            with search.locked():
                if search.left:
                    run_search(search)
    by_recipe: dict[str, Search] = {}
    for recipe in planner.team.trainings:
        if recipe.search:
            by_recipe[recipe.name] = searches[Search(planner, recipe.model_copy(update={"pick": 1})).signature]
    trainings = [r.chosen(by_recipe[r.name].best()[r.pick - 1]) if r.search else r for r in planner.team.trainings]
    seconds = {name: search.seconds / search.space.keep for name, search in by_recipe.items()}
    resolved = replace(planner, team=planner.team.model_copy(update={"trainings": tuple(trainings)}))
    return ResolvedRecipes(resolved, list(searches.values()), seconds)


def known_recipes(planner: Planner) -> ResolvedRecipes:
    """Return the team with what was found, or else with the searches that are not done; run nothing."""
    undone = [search for search in find_searches(planner).values() if search.left]
    return ResolvedRecipes(planner, undone, {}) if undone else resolve_recipes(planner, run_no_search)


def run_no_search(search: Search) -> None:
    """Do nothing: every search is done."""


def describe_choice(choice: Choice) -> str:
    """Return a choice in words."""
    return ", ".join(f"{key} {value if isinstance(value, str) else format(value, 'g')}" for key, value in choice.items())
