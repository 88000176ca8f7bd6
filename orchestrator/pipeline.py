"""The whole story of a sweep: pack, plan, track, launch, fuse, report."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from orchestrator import config, launch, plan, report
from orchestrator.anytime import Anytime
from orchestrator.config import Team
from orchestrator.fusing import Place, Request, fuse
from orchestrator.home import Home, SweepFolder
from orchestrator.launch import Executor, Outcome
from orchestrator.plan import Plan
from orchestrator.runs import Runs
from workers import data
from workers.artifact import MemberArtifact
from workers.data import split
from workers.errors import Rejected
from workers.spec import Job

STOP_SECONDS = 7.0  # for a fit to finish its step and write a checkpoint
FLUSH_SECONDS = 10.0


class Pool(Executor, Protocol):
    """An executor that can run the fusion step too."""

    def call_on_head(self, function: Any, *arguments: Any) -> Any: ...


@dataclass
class Options:
    """What a caller of `sweep` may choose."""

    home: Home
    make_pool: Callable[[Team], Pool]
    watch: launch.Watch = lambda event: None
    say: Callable[[str], None] = lambda text: None
    packed: data.Progress = lambda rows, expected: None
    data: Path | None = None
    restart: tuple[str, ...] = ()  # members to train afresh


@dataclass
class Result:
    summary: dict[str, Any]
    exit_code: int
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def sweep(team_file: Path, options: Options) -> Result:
    """Train what isn't done, fuse, export, report. Raises Rejected before anything was written."""
    team = config.load(team_file, options.data)
    for name in set(options.restart) - {m.name for m in team.members}:
        raise Rejected(f"--restart {name}: no such member; there are {', '.join(m.name for m in team.members)}.")
    uri = tracked_at(team.tracking, options.home, options.say)
    paths = (str(team_file.resolve().parent),)
    preflight(team, paths)
    store = data.pack(team.data, options.home.path, options.packed, lambda store: split(store, team.data, team.seed))
    for note in store.notes():
        options.say(note)
    folder = options.home.sweep(team.name)
    with folder.held():
        todo = plan.make(team, store, options.home.path, paths)
        for line in changes(folder.state().get("settings", {}), todo):
            options.say(line)
        _keep_team_file(team_file, folder)
        for job in todo.jobs:
            MemberArtifact.of(job.home, job.signature).tidy()
        runs = Runs.open(team_file, todo, folder, uri, options.home, options.restart)
        todo = runs.adopt_elsewhere(plan.make(team, store, options.home.path, paths))
        if not todo.todo and _unchanged(folder, todo):
            return _again(folder, todo)
        return _run(todo, runs, folder, uri, options)


def _run(todo: Plan, runs: Runs, folder: SweepFolder, uri: str, options: Options) -> Result:
    runs.begin()
    pool: Pool | None = None
    team = todo.team
    try:
        pool = options.make_pool(team) if todo.todo else None
        follow = Anytime(todo, options.watch, options.say)
        outcomes = launch.supervise(todo.todo, pool, uri, runs.by_signature(), team.retries, follow) if pool else {}
        follow.close()
        members = judge(todo, outcomes)
        runs.finish_members(todo, members)
        done = [name for name, member in members.items() if member["state"] == "done"]
        if len(done) < team.quorum:
            summary = _summary(todo, members, None, outcomes, folder, uri, runs)
            runs.end(summary, folder)
            return _close(summary, 1, runs, folder, outcomes)
        options.say(f"fusing {len(done)} members: {', '.join(team.fusion)}")
        request = make_request(todo, members, folder, uri, runs)
        details = pool.call_on_head(fuse, request) if pool else fuse(request)
    except KeyboardInterrupt:
        if pool:
            pool.stop(STOP_SECONDS)
        runs.interrupted()
        summary = {**_summary(todo, judge(todo, {}), None, {}, folder, uri, runs), "state": "interrupted"}
        return _close(summary, 130, runs, folder)
    except BaseException:
        runs.failed()
        runs.flush(FLUSH_SECONDS)
        raise
    finally:
        if pool:
            pool.close()
    summary = _summary(todo, members, details, outcomes, folder, uri, runs)
    report.write(folder, team, summary, details, histories(todo), todo.store)
    runs.end(summary, folder, details)
    return _close(summary, 0 if summary["state"] == "done" else 3, runs, folder, outcomes)


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
    for member in team.members:
        try:
            network = build(member, 2 if member.weights is None else 10, team.data.size)
            if "concat" in team.fusion and not linear_head(network):
                problems.append(
                    f"member {member.name}: {member.arch} doesn't end in a Linear head, which concat starts from. "
                    "Take concat out of `fusion:`, or give another network."
                )
        except Rejected as error:
            problems.append(str(error))
        except Exception as error:
            problems.append(f"member {member.name}: {member.arch} can't be built ({error}).")
    if problems:
        raise Rejected("\n".join(problems))


def judge(todo: Plan, outcomes: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Each member's state, by its full fit; a member that lacks fold fits is done, and says why stack goes without."""
    members = {}
    for member in todo.team.members:
        jobs = todo.of(member.name)
        full = outcomes.get(jobs[0].signature)
        entry: dict[str, Any] = {"state": "done", "reason": None, "seed": member.seed}
        artifact = MemberArtifact.of(jobs[0].home, jobs[0].signature)
        if artifact.done:
            manifest = artifact.manifest()
            entry |= {"train_seconds": manifest["train_seconds"], "weights_sha256": manifest["weights_sha256"]}
            missing = [j for j in jobs[1:] if not MemberArtifact.of(j.home, j.signature).done]
            if missing:
                first = outcomes.get(missing[0].signature)
                why = first.reason if first else "it was not run"
                entry["reason"] = f"left out of stack: {len(missing)} fold fits are missing ({missing[0].label}: {why})"
        else:
            state = full.kind if full and full.kind != "done" else "pending"
            entry |= {
                "state": state,
                "reason": full.reason if full else None,
                "train_seconds": None,
                "weights_sha256": None,
            }
        members[member.name] = {**entry, "test": None}
    return members


def make_request(
    todo: Plan, members: dict[str, dict[str, Any]], folder: SweepFolder, uri: str | None, runs: Runs | None
) -> Request:
    specs = {m.name: m for m in todo.team.members if members[m.name]["state"] == "done"}
    ids = runs.by_signature() if runs else {}

    def place(job: Job) -> Place:
        return Place(ids.get(job.signature), MemberArtifact.of(job.home, job.signature).root)

    jobs = {name: todo.of(name) for name in specs}
    return Request(
        sweep=folder.path.absolute(),
        name=todo.team.name,
        members=specs,
        full={name: place(of[0]) for name, of in jobs.items()},
        folds={n: [place(j) for j in of[1:]] for n, of in jobs.items() if of[1:] and members[n]["reason"] is None},
        fusions=todo.team.fusion,
        data=todo.team.data,
        team_seed=todo.team.seed,
        store=todo.store.folder.absolute(),
        uri=uri,
        import_paths=todo.jobs[0].import_paths,
        provenance={
            "sweep": todo.team.name,
            "data_digest": todo.store.digest,
            "member_weights": {n: members[n]["weights_sha256"] for n in specs},
            "commit": _commit(),
        },
        prices=todo.team.hourly,
    )


def histories(todo: Plan) -> dict[str, list[dict[str, float]]]:
    """The full fits' histories, by member."""
    found = {}
    for job in todo.jobs:
        artifact = MemberArtifact.of(job.home, job.signature)
        if job.fold is None and artifact.done:
            found[job.member.name] = artifact.manifest()["history"]
    return found


def _summary(
    todo: Plan,
    members: dict[str, dict[str, Any]],
    details: dict[str, Any] | None,
    outcomes: dict[str, Outcome],
    folder: SweepFolder,
    uri: str,
    runs: Runs,
) -> dict[str, Any]:
    table = details["candidates"] if details else {}
    for name, member in members.items():
        member["test"] = brief(table.get(name, {}).get("test"))
    whole = all(m["state"] == "done" and m["reason"] is None for m in members.values())
    return {
        "sweep": todo.team.name,
        "state": "failed" if details is None else "done" if whole else "partial",
        "trained": sum(outcome.manifest is not None for outcome in outcomes.values()),
        "reused": sum(job.signature in todo.done for job in todo.jobs),
        "members": members,
        "fusions": {
            name: {"test": brief(row["test"]), "train_cost": row["train_cost"], "inference_cost": row["inference_cost"]}
            for name, row in table.items()
            if name not in members
        },
        "recommended": details and details["recommended"],
        "model": str(folder.model.absolute()) if details else None,
        "classes": todo.store.classes,
        "tracking_uri": uri,
        "parent_run_id": runs.parent,
    }


def brief(test: dict[str, float] | None) -> dict[str, float] | None:
    return test and {"accuracy": test["accuracy"], "nll": test["nll"]}


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


def tracked_at(asked: config.Tracking, home: Home, say: Callable[[str], None]) -> str:
    """The tracking store's URI. Refuses a server that doesn't answer, before anything starts, unless it is not required."""
    if asked.uri is None:
        return home.tracking_uri
    trouble = _trouble(asked.uri)
    if trouble and asked.required:
        raise Rejected(f"tracking.uri: {asked.uri} {trouble}. Start the server, or leave uri null.")
    if trouble:
        say(f"tracking.uri: {asked.uri} {trouble}; tracked in {home.path} instead")
        return home.tracking_uri
    return asked.uri


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


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


class Inline(launch.InlineExecutor):
    """Everything in this process, the fusion step too."""

    def call_on_head(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


def inline_pool(team: Team) -> Pool:
    """Without Ray."""
    return Inline()


def ray_pool(address: str | None) -> Callable[[Team], Pool]:
    """A pool on Ray, imported only when it is needed."""

    def make(team: Team) -> Pool:
        from orchestrator.cluster import RayExecutor

        return RayExecutor(address or os.environ.get("RAY_ADDRESS"), team.heartbeat)

    return make
