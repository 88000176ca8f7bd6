"""The whole story of a sweep: pack, plan, track, launch, fuse, report."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlparse

from orchestrator import config, launch, plan, report, results, search
from orchestrator.anytime import Anytime
from orchestrator.budget import Meter
from orchestrator.home import Home, SweepFolder
from orchestrator.launch import Executor, Outcome
from orchestrator.plan import Plan
from orchestrator.runs import Runs
from orchestrator.search import Search
from orchestrator.team import Team, Tracking
from workers import data
from workers.artifact import MemberArtifact
from workers.elsewhere import Disk
from workers.errors import Rejected
from workers.splits import keep, split

if TYPE_CHECKING:
    from orchestrator.connection import Connection

TRACKING_URI = "CONCLAVE_TRACKING_URI"  # not MLflow's own variable, which MLflow sets itself, for all that follows in the process
STOP_SECONDS = 7.0  # for a fit to finish its step and write a checkpoint
FLUSH_SECONDS = 10.0


class Pool(Executor, Protocol):
    """An executor that can run the fusion step too."""

    def call_on_head(self, function: Any, *arguments: Any) -> Any: ...


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


@dataclass
class Result:
    summary: dict[str, Any]
    exit_code: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def sweep(team_file: Path, options: Options) -> Result:
    """Train what isn't done, fuse, export, report. Raises Rejected before anything was written."""
    team = config.load(team_file, options.data)
    known = [m.name for m in team.recipes]
    for name in set(options.restart) - set(known):
        raise Rejected(f"--restart {name}: no such member; there are {', '.join(known)}.")
    if options.make_search is None and (searched := [m.name for m in team.members if m.search]):
        raise Rejected(f"member {searched[0]}: search runs its trials on Ray. Leave --inline out.")
    uri = tracked_at(team.tracking, options.home, options.say)
    paths = (str(team_file.resolve().parent),)
    if not _all_there(team, options, paths):
        preflight(team, paths)
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
            return _again(folder, todo)
        return _run(todo, runs, folder, uri, options)


def _run(todo: Plan, runs: Runs, folder: SweepFolder, uri: str, options: Options) -> Result:
    runs.begin()
    pool: Pool | None = None
    team = todo.team
    try:
        pool = options.make_pool(team, folder) if todo.todo else None
        follow = Anytime(todo, options.watch, options.say)
        outcomes = _train(todo, pool, uri, runs, follow) if pool else {}
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
    summary = results.summarize(todo, members, details, outcomes, folder, uri, runs)
    report.write(folder, team, summary, details, results.histories(todo), todo.store)
    runs.end(summary, folder, details)
    return _close(summary, 0 if summary["state"] == "done" else 3, runs, folder, outcomes)


def _train(todo: Plan, pool: Pool, uri: str, runs: Runs, watch: launch.Watch) -> dict[str, Outcome]:
    meter = Meter.of(todo, watch)
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


def preflight(team: Team, paths: Sequence[str]) -> None:
    """Build every member's network once, before anything is written. Raises Rejected with every problem."""
    from workers.models import build, import_from, linear_head

    import_from(paths)
    problems = []
    for member in team.recipes:
        try:
            network = build(member, 2 if member.weights is None else 10, team.data.size)
            if "concat" in team.fusion and member in team.members and not linear_head(network):
                problems.append(
                    f"member {member.name}: {member.arch} doesn't end in a Linear head, which concat starts from. "
                    "Take concat out of `fusion:`, or give another network."
                )
            if "concat_tuned" in team.fusion and member in team.members and not _has_stages(network):
                problems.append(
                    f"member {member.name}: {member.arch} is no ResNet; concat_tuned trains the last stage of those. "
                    "Leave `concat: {finetune: true}` out, or give another network."
                )
        except Rejected as error:
            problems.append(str(error))
        except Exception as error:
            problems.append(f"member {member.name}: {member.arch} can't be built ({error}).")
    if problems:
        raise Rejected("\n".join(problems))


def _has_stages(network: Any) -> bool:
    from fusion.tuned import tail

    return tail(network) is not None


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


def _again(folder: SweepFolder, todo: Plan) -> Result:
    summary = {**folder.summary(), "trained": 0, "reused": len(todo.jobs)}
    folder.write("summary.json", summary)
    return Result(summary, 0)


def _keep_team_file(team_file: Path, folder: SweepFolder) -> None:
    if team_file.resolve() != folder.team.resolve():
        shutil.copyfile(team_file, folder.team)


def tracked_at(asked: Tracking, home: Home, say: Callable[[str], None]) -> str:
    """The tracking store's URI: the team's, else CONCLAVE_TRACKING_URI, else the home's.

    Refuses a server that doesn't answer, before anything starts, unless it is not required.
    """
    named, uri = ("tracking.uri", asked.uri) if asked.uri else (TRACKING_URI, os.environ.get(TRACKING_URI))
    if not uri:
        return home.tracking_uri
    trouble = _trouble(uri)
    if trouble and asked.required:
        raise Rejected(f"{named}: {uri} {trouble}. Start the server, or leave it out.")
    if trouble:
        say(f"{named}: {uri} {trouble}; tracked in {home.path} instead")
        return home.tracking_uri
    return uri


def _trouble(uri: str) -> str | None:
    """What is wrong with a tracking server, or None. Other stores are asked when they are opened."""
    if urlparse(uri).scheme not in ("http", "https"):
        return None
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            return None
    except urllib.error.HTTPError:
        return None  # somebody answers; whether they let us in is seen at the first call
    except (OSError, ValueError) as error:
        return f"doesn't answer ({getattr(error, 'reason', error)})"


class Inline(launch.InlineExecutor):
    """Everything in this process, the fusion step too."""

    def call_on_head(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


def inline_pool(team: Team, folder: SweepFolder) -> Pool:
    """Without Ray."""
    return Inline()


class OnRay:
    """A pool and searches on Ray: on the one at `address`, else on one of our own. Ray is imported only once it is needed."""

    def __init__(self, address: str | None, say: Callable[[str], None]) -> None:
        self.address, self.say = address or os.environ.get("RAY_ADDRESS"), say

    @cached_property
    def connection(self) -> Connection:
        """One for all: Ray keeps the token of the first in its process for good."""
        from orchestrator.connection import Connection

        return Connection(self.address)

    def pool(self, team: Team, folder: SweepFolder) -> Pool:
        from orchestrator.cluster import RayExecutor

        return RayExecutor(self.connection, team.heartbeat, *self._machines(team, folder))

    def search(self, team: Team, folder: SweepFolder) -> Callable[[Search], None]:
        def find(search: Search) -> None:
            from orchestrator.tuning import Tuner

            Tuner(self.connection, self.say, *self._machines(team, folder))(search)

        return find

    def close(self) -> None:
        if "connection" in self.__dict__:
            self.connection.close()

    def _machines(self, team: Team, folder: SweepFolder) -> tuple[bool, Disk | None]:
        """Whether they have to be like this one, and the disk that the home is on, where they may have others."""
        cluster, holder = self.address is not None, folder.holder.absolute()
        disk = Disk(holder, holder.read_text(encoding="utf-8")) if cluster else None
        return team.environment == "strict" or (team.environment is None and cluster), disk
