"""Refit fusions from artifacts: choose members of one or several sweeps for the fusion step. No training, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workers.errors import CorruptFileError, UserInputError

if TYPE_CHECKING:
    from fusion.results import FusionDetails
    from orchestrator.fusing.request import FusionRequest
    from orchestrator.planning.plan import Plan


def join_sweeps(home: Path, name: str, methods: list[str] | None, others: Sequence[str]) -> FusionRequest:
    """Return one request for the members of several sweeps. Members of other sweeps are named SWEEP.MEMBER.

    Args:
        home: The home.
        name: Name of the sweep.
        methods: The fusions to fit; None for the team's.
        others: Names of further sweeps.

    Raises:
        UserInputError: If a sweep is unknown, or its data or split differs.
    """
    request = build_request(home, name, methods)
    for other in others:
        joined = build_request(home, other)
        if _split_of(request) != _split_of(joined):
            raise UserInputError(
                f"--with {other}: other data, seed or split than {name}: its members saw rows that {name} fuses on."
            )
        new_names = {member: f"{other}.{member}" for member in joined.members}
        request = replace(
            request,
            student=None,
            members={**request.members, **{new: joined.members[old] for old, new in new_names.items()}},
            full={**request.full, **{new: joined.full[old] for old, new in new_names.items()}},
            folds={**request.folds, **{new: joined.folds[old] for old, new in new_names.items() if old in joined.folds}},
            import_paths=(*request.import_paths, *joined.import_paths),
        )
    return request


def _split_of(request: FusionRequest) -> tuple[object, ...]:
    return request.store, request.split


def select_members(request: FusionRequest, drop: Sequence[str], only: Sequence[str]) -> FusionRequest:
    """Return the request for some of the members.

    Args:
        request: The request.
        drop: Members to leave out; each entry may hold several, separated by commas.
        only: Members to keep; all if empty.

    Raises:
        UserInputError: If a member is unknown, or no member is left.
    """
    dropped, wanted = ([name for text in texts for name in text.split(",")] for texts in (drop, only))
    for option, names in (("--drop", dropped), ("--only", wanted)):
        for name in names:
            if name not in request.members:
                raise UserInputError(f"{option} {name}: no such member is done; there are {', '.join(request.members)}.")
    selected = [m for m in request.members if m not in dropped and (not wanted or m in wanted)]
    if not selected:
        raise UserInputError("--drop and --only leave no member to fuse.")
    return replace(
        request,
        student=request.student if selected == list(request.members) else None,
        members={m: request.members[m] for m in selected},
        full={m: request.full[m] for m in selected},
        folds={m: request.folds[m] for m in selected if m in request.folds},
    )


def build_request(home: Path, name: str, methods: list[str] | None = None) -> FusionRequest:
    """Return the request for a sweep, using only the home.

    Args:
        home: The home.
        name: Name of the sweep.
        methods: The fusions to fit; None for the team's.

    Raises:
        UserInputError: If the sweep or a fusion is unknown, or no member is done.
    """
    from fusion.interface import FUSIONS
    from orchestrator.fusing.request import make_request
    from orchestrator.home import Home
    from orchestrator.reporting.summary import member_states

    if unknown := [method for method in methods or () if method not in FUSIONS]:
        raise UserInputError(f"--method: {FUSIONS.answer(unknown[0])}.")
    folder = Home(home).existing(name)
    plan = _plan_of(home, name)
    if methods:
        plan = replace(plan, team=plan.team.model_copy(update={"fusion": tuple(methods)}))
    members = member_states(plan, {})
    if not any(member.is_done for member in members.values()):
        raise UserInputError(f"sweep {name}: no member is done yet. Run `conclave sweep` first.")
    return make_request(plan, members, folder)


def _plan_of(home: Path, name: str) -> Plan:
    from orchestrator.config.loader import resolve_team
    from orchestrator.config.yaml_document import Document, read_document
    from orchestrator.home import Home
    from orchestrator.planning.plan import Planner
    from orchestrator.planning.search import known_recipes
    from orchestrator.planning.start_weights import locate_weights
    from workers.data.store import Store
    from workers.data.store_checks import damaged_file

    folder = Home(home).existing(name)
    state = folder.state()
    assert state is not None  # `existing` checked it
    origin, written = Path(state.team_file), read_document(folder.team)
    document = Document(origin, written.values, written.root)
    team = resolve_team(document, Path(state.data) if state.data else None)
    store = Store(Path(home, "data", state.store))
    if not (store.folder / "store.json").is_file():
        raise UserInputError(f"sweep {name}: its packed data is gone from {store.folder}. Run `conclave sweep` again.")
    if damaged := damaged_file(store):
        raise CorruptFileError(f"{store.folder / damaged}: damaged. `conclave sweep` packs the data again.")
    team = locate_weights(team, Home(home))
    recipes = known_recipes(Planner(team, store, home, (str(origin.parent),)))
    if undone := [search.label for search in recipes.searches if search.left]:
        raise UserInputError(f"sweep {name}: the search of {undone[0]} is not done. Run `conclave sweep` again.")
    return replace(recipes.planner.plan(), searched=recipes.seconds)


def refit_fusions(request: FusionRequest) -> FusionDetails:
    """Fit the fusions and return their evaluation. Nothing is written, so the sweep's results stay as they are."""
    from orchestrator.fusing.costs import all_cores
    from orchestrator.fusing.fitted_team import fit_team
    from orchestrator.fusing.step import evaluate_fusions

    with all_cores() as threads:
        return evaluate_fusions(request, fit_team(request), threads)
