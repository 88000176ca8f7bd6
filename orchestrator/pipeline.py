"""The whole story of a sweep: pack, plan, track, launch, fuse, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator import config, launch, plan, preflight, report, results, search
from orchestrator.anytime import Anytime
from orchestrator.budget import Meter
from orchestrator.home import Home, SweepFolder
from orchestrator.launch import Outcome
from orchestrator.plan import Plan
from orchestrator.pools import Pool
from orchestrator.runs import Runs
from orchestrator.search import Search
from orchestrator.team import Team
from workers import data
from workers.artifact import MemberArtifact
from workers.errors import Rejected
from workers.splits import keep, split

STOP_SECONDS = 7.0  # for a fit to finish its step and write a checkpoint
FLUSH_SECONDS = 10.0


@dataclass
class Options:
    """What a caller of `sweep` may choose."""

    home: Home
    make_pool: Callable[[Team, SweepFolder], Pool]
    watch: launch.Watch = lambda event: None
    say: Callable[[str], None] = lambda text: None
    packed: data.Progress = lambda rows, expected: None
    data: Path | None = None
    restart: tuple[str, ...] = ()  # members to train afresh
    make_search: Callable[[Team, SweepFolder], Callable[[Search], None]] | None = None  # where recipes are to be found
    answers: Callable[[], None] = lambda: None  # raises Rejected where the pool's machines don't
    began: float = field(default_factory=time.monotonic)  # the budget's hours count from here


@dataclass
class Result:
    summary: dict[str, Any]
    exit_code: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def sweep(team_file: Path, options: Options) -> Result:
    """Train what isn't done, fuse, export, report. Raises Rejected before anything was written."""
    team = config.load(team_file, options.data)
    team.check_names("--restart", options.restart)
    if options.make_search is None and (searched := [m.name for m in team.members if m.search]):
        raise Rejected(f"member {searched[0]}: search runs its trials on Ray. Leave --inline out.")
    uri = preflight.tracked_at(team.tracking, options.home, options.say)
    paths = (str(team_file.resolve().parent),)
    if not _all_there(team, options, paths):
        options.answers()
        preflight.networks(team, paths)
    store = data.pack(team.data, options.home.path, options.packed, lambda store: split(store, team.data, team.seed))
    for note in store.notes():
        options.say(note)
    folder = options.home.sweep(team.name)
    with folder.held():
        keep(store, team.data, team.seed)
        find = options.make_search(team, folder) if options.make_search else search.nothing
        found = search.resolved(team, store, options.home.path, paths, find)
        todo = replace(plan.make(found.team, store, options.home.path, paths), searched=found.seconds)
        for line in changes(folder.state().get("settings", {}), todo):
            options.say(line)
        _keep_team_file(team_file, folder)
        for job in todo.jobs:
            MemberArtifact.of(job.home, job.signature).tidy()
        runs = Runs.open(team_file, todo, folder, uri, options.home, options.restart)
        for one in found.searches:
            runs.tell(one)
        again = plan.make(found.team, store, options.home.path, paths)  # without what is to be trained afresh
        todo = runs.adopt_elsewhere(replace(again, searched=found.seconds))
        if not todo.todo and _unchanged(folder, todo):
            return _again(folder, todo, runs, uri)
        return _run(todo, runs, folder, uri, options)


def _run(todo: Plan, runs: Runs, folder: SweepFolder, uri: str, options: Options) -> Result:
    runs.begin()
    pool: Pool | None = None
    team = todo.team
    try:
        pool = options.make_pool(team, folder) if todo.todo else None
        follow = Anytime(todo, options.watch, options.say)
        outcomes = _train(todo, pool, uri, runs, follow, options.began) if pool else {}
        follow.close()
        outcomes = runs.gather(outcomes)
        members = results.judge(todo, outcomes)
        student = results.judge_student(todo, outcomes)
        runs.finish_members(todo, {**members, **({"student": student} if student else {})})
        done = [name for name, member in members.items() if member["state"] == "done"]
        if len(done) < team.quorum:
            summary = results.summarize(todo, members, None, outcomes, folder, uri, runs)
            runs.end(summary, folder)
            return _close(summary, 1, runs, folder, outcomes)
        options.say(f"fusing {len(done)} members: {', '.join(team.fusion)}")
        from orchestrator.fusing import fuse  # only now: nothing before needs what it imports

        request = results.make_request(todo, members, folder, uri, runs)
        details = pool.call_on_head(fuse, request) if pool else fuse(request)
        summary = results.summarize(todo, members, details, outcomes, folder, uri, runs)
        report.write(folder, team, summary, details, results.histories(todo), todo.store)
        runs.end(summary, folder, details)
    except KeyboardInterrupt:
        if pool:
            pool.stop(STOP_SECONDS)
        runs.interrupted()
        summary = {**results.summarize(todo, results.judge(todo, {}), None, {}, folder, uri, runs), "state": "interrupted"}
        return _close(summary, 130, runs, folder)
    except BaseException:
        runs.failed()
        runs.flush(FLUSH_SECONDS)
        raise
    finally:
        if pool:
            pool.close()
    return _close(summary, 0 if summary["state"] == "done" else 3, runs, folder, outcomes)


def _train(todo: Plan, pool: Pool, uri: str, runs: Runs, watch: launch.Watch, began: float) -> dict[str, Outcome]:
    meter = Meter.of(todo, watch, began)
    return launch.supervise(todo.todo, pool, uri, runs.run_now, todo.team.retries, meter, meter.reached)


def _close(
    summary: dict[str, Any], code: int, runs: Runs, folder: SweepFolder, outcomes: dict[str, Outcome] | None = None
) -> Result:
    """Send what can be sent, and leave the summary."""
    summary["unsent"] = runs.flush(FLUSH_SECONDS if code != 130 else FLUSH_SECONDS / 5)
    folder.write("summary.json", summary)
    return Result(summary, code, outcomes or {})


def changes(before: dict[str, str], todo: Plan) -> list[str]:
    """A line for each setting that differs from the sweep's last run."""
    now = todo.settings()
    if not before:
        return []
    differing = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    return [f"changed since the last run: {k}: {before.get(k, 'not there')} -> {now.get(k, 'not there')}" for k in differing]


def _all_there(team: Team, options: Options, paths: tuple[str, ...]) -> bool:
    """Whether all is trained and fused, so that no network needs to be built; of a search's recipes that is not known yet."""
    store = data.find(team.data, options.home.path)
    if store is None or options.restart or any(member.search for member in team.members):
        return False
    todo = plan.make(team, store, options.home.path, paths)
    return not todo.todo and _unchanged(options.home.sweep(team.name), todo)


def _unchanged(folder: SweepFolder, todo: Plan) -> bool:
    summary = folder.summary()
    whole = summary.get("state") == "done" and folder.model.is_file() and folder.report.is_file()
    return bool(whole and folder.state().get("fingerprint") == todo.fingerprint())


def _again(folder: SweepFolder, todo: Plan, runs: Runs, uri: str) -> Result:
    """Nothing to do but to fill the runs of a tracking store that has none of this sweep yet."""
    here = {"model": str(folder.model.absolute()), "tracking_uri": uri, "parent_run_id": runs.parent}
    summary = {**folder.summary(), **here, "trained": 0, "reused": len(todo.jobs)}
    if runs.new:
        runs.end(summary, folder, folder.details())
    return _close(summary, 0, runs, folder)


def _keep_team_file(team_file: Path, folder: SweepFolder) -> None:
    if team_file.resolve() != folder.team.resolve():
        shutil.copyfile(team_file, folder.team)
