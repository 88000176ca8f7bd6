"""Refit from artifacts: which members of which sweeps, gathered into a request for the fusion step. No training, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers import legacy
from workers.errors import Rejected

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.request import Request


def joined(home: Path, name: str, methods: list[str] | None, others: Sequence[str]) -> Request:
    """One request for the members of several sweeps, those of the others as SWEEP.MEMBER."""
    request = request_of(home, name, methods)
    for other in others:
        theirs = request_of(home, other)
        ours = (request.store, request.team_seed, request.data.fuse_fraction, request.data.test_fraction, request.data.folds)
        if ours != (theirs.store, theirs.team_seed, theirs.data.fuse_fraction, theirs.data.test_fraction, theirs.data.folds):
            raise Rejected(f"--with {other}: other data, seed or split than {name}: its members saw rows that {name} fuses on.")
        named = {member: f"{other}.{member}" for member in theirs.members}
        request = replace(
            request,
            student=None,
            members={**request.members, **{new: theirs.members[old] for old, new in named.items()}},
            full={**request.full, **{new: theirs.full[old] for old, new in named.items()}},
            folds={**request.folds, **{new: theirs.folds[old] for old, new in named.items() if old in theirs.folds}},
            import_paths=(*request.import_paths, *theirs.import_paths),
        )
    return request


def chosen(request: Request, drop: Sequence[str], only: Sequence[str]) -> Request:
    """The same for some of the members."""
    dropped, wanted = ([name for text in texts for name in text.split(",")] for texts in (drop, only))
    for option, names in (("--drop", dropped), ("--only", wanted)):
        for name in names:
            if name not in request.members:
                raise Rejected(f"{option} {name}: no such member is done; there are {', '.join(request.members)}.")
    kept = [m for m in request.members if m not in dropped and (not wanted or m in wanted)]
    if not kept:
        raise Rejected("--drop and --only leave no member to fuse.")
    return replace(
        request,
        student=request.student if kept == list(request.members) else None,
        members={m: request.members[m] for m in kept},
        full={m: request.full[m] for m in kept},
        folds={m: request.folds[m] for m in kept if m in request.folds},
    )


def request_of(home: Path, name: str, methods: list[str] | None = None) -> Request:
    """What the fusion step needs, from the home alone."""
    from fusion.names import KNOWN
    from orchestrator import results
    from orchestrator.home import Home

    unknown = [m for m in methods or () if m not in KNOWN]
    if unknown:
        raise Rejected(f"--method {unknown[0]}: unknown; known are {', '.join(KNOWN)}.")
    folder = Home(home).existing(name)
    made = _plan_of(home, name)
    if methods:
        made = replace(made, team=made.team.model_copy(update={"fusion": tuple(methods)}))
    members = results.judge(made, {})
    missing = [n for n, m in members.items() if m["state"] != "done"]
    if len(missing) == len(members):
        raise Rejected(f"sweep {name}: no member is done yet. Run `conclave sweep` first.")
    return results.make_request(made, members, folder, None, None)


def _plan_of(home: Path, name: str) -> Plan:
    from orchestrator import config, search, teamfile
    from orchestrator import plan as planning
    from orchestrator.home import Home
    from workers.data import Store, find

    folder = Home(home).existing(name)
    state = folder.state()
    origin = Path(state["team_file"])
    team = config.resolve(teamfile.Document(origin, *_parsed(folder.team)), state["data"] and Path(state["data"]))
    store = Store(Path(home, "data", state["store"])) if state.get("store") else find(team.data, home)
    if store is None or not (store.folder / "store.json").is_file():
        raise Rejected(f"sweep {name}: its packed data is gone from {home}/data. Run `conclave sweep` again.")
    paths = (str(origin.parent),)
    found = search.as_far_as_known(team, store, home, paths)
    if undone := [one.label for one in found.searches if one.left]:
        raise Rejected(f"sweep {name}: the search of {undone[0]} is not done. Run `conclave sweep` again.")
    return replace(planning.make(found.team, store, home, paths), searched=found.seconds)


def _parsed(path: Path) -> tuple[dict[str, Any], Any]:
    from orchestrator import teamfile

    document = teamfile.read(path)
    return legacy.without_removed(document.values), document.root


def fuse_apart(request: Request) -> dict[str, Any]:
    """What the fusions come to, so that the sweep's own results stay as they are: nothing is written."""
    from orchestrator.fusing import judged, prepare

    return judged(request, prepare(request))
