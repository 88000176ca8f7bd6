"""Commands on a team file and its sweep: validate, plan, sweep, status, doctor."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from orchestrator.cli.options import DEFAULT_HOME, SCHEMA_NAME, AsJson, Cpus, DataPath, HomeDir, TeamFile
from workers.diagnostics.cores import available_cores
from workers.errors import UserInputError

if TYPE_CHECKING:
    from orchestrator.cluster.launcher import Cluster
    from orchestrator.cluster.ray_jobs import RemoteSweep
    from orchestrator.config.team import Team
    from orchestrator.home import Home
    from orchestrator.planning.plan import Plan
    from orchestrator.sweep import SweepResult

app = typer.Typer()


@app.command(epilog=f"Example: conclave schema > {SCHEMA_NAME}")
def schema() -> None:
    """Print the JSON Schema of team files, for completion and checks in editors."""
    from orchestrator.config.team_file import schema_text

    print(schema_text(), end="")


@app.command(epilog="Example: conclave validate team.yaml")
def validate(team_file: TeamFile, as_json: AsJson = False) -> None:
    """Check a team file, and name every mistake with its line. Nothing is written."""
    from orchestrator.config.loader import load_team
    from orchestrator.planning.disk import describe_disk

    team = load_team(team_file)
    if as_json:
        print(json.dumps({**team.model_dump(mode="json"), "members": [m.model_dump(mode="json") for m in team.members]}))
    else:
        names = ", ".join(m.name for m in team.members)
        print(f"{team_file} is valid: team {team.name}, {len(team.members)} members ({names}).")
        for line in (*_downloads(team), describe_disk(team, None)):
            print(line)


@app.command(epilog="Example: conclave plan team.yaml")
def plan(
    team_file: TeamFile,
    home: HomeDir = DEFAULT_HOME,
    data: DataPath = None,
    on: Annotated[
        Path | None, typer.Option(help="Estimate the machines, hours and money of this cluster.", metavar="CLUSTER.YAML")
    ] = None,
    cpus: Cpus = None,  # its callback counts
    as_json: AsJson = False,
) -> None:
    """List the jobs, their states and the time left. Nothing is written."""
    from orchestrator.cluster.launcher import Cluster
    from orchestrator.config.loader import load_team
    from orchestrator.home import Home
    from orchestrator.planning.disk import describe_disk
    from orchestrator.planning.plan import Planner
    from orchestrator.planning.search import known_recipes
    from orchestrator.planning.start_weights import locate_weights
    from workers.data.store import find_store

    team = load_team(team_file, data)
    cluster = Cluster.read(on) if on else None
    missing, located = _downloads(team), locate_weights(team, Home(home))
    store = find_store(located.data, home)
    for line in (*missing, describe_disk(team, store)) if not as_json else ():
        print(line)
    team = located
    if store is None or missing:
        folds = (None, *range(team.folds))
        labels = [f"{m.name}{'' if fold is None else f' fold {fold}'}" for fold in folds for m in team.members]
        labels += ["student"] if team.student else []
        awaited = ["the data is packed"] * (store is None) + ["the weights are downloaded"] * bool(missing)
        time = f"unknown until {' and '.join(awaited)}: `conclave sweep` does that"
        _show_plan([(label, "to do") for label in labels], time, as_json)
        return
    recipes = known_recipes(Planner(team, store, home, (str(team_file.resolve().parent),)))
    current = recipes.planner.plan()
    open_searches = [search for search in recipes.searches if search.left]
    rows = [(f"{s.label} search: {s.left} of {s.space.trials} trials", "to do") for s in open_searches]
    rows += [(planned.label, "done" if planned.signature in current.done else "to do") for planned in current.members]
    suffix = " after the search, which is not counted" if open_searches else ""
    _show_plan(rows, _describe_time(current, cluster) + suffix if current.todo else "nothing to do", as_json)


def _downloads(team: Team) -> list[str]:
    """Return a line for each file of weights that a sweep of the team would download."""
    from orchestrator.planning.start_weights import published_weights
    from workers.models.pretrained import cached_file

    files = {weights: cached_file(weights) for weights in published_weights(team).values()}
    return [
        f"The sweep would download {weights} from {weights.url} to {path}."
        for weights, path in files.items()
        if not path.is_file()
    ]


def _describe_time(plan: Plan, cluster: Cluster | None) -> str:
    """Return the estimated time in words: on this machine, or on the machines of a cluster file."""
    from orchestrator.planning.estimate import estimate_cluster, estimate_local

    if cluster is None:
        seconds, basis = estimate_local(plan, available_cores())
        return f"about {seconds / 60:.1f} minutes on this machine's cores ({basis})"
    try:
        estimate = estimate_cluster(plan, cluster.config)
    except UserInputError as error:
        raise UserInputError(f"{cluster.path}: {error}") from None
    counts = {name: (count, hours) for name, (count, hours) in estimate.machines.items() if count}
    machines = ", ".join(f"{count} {name} ({hours:.1f} hours)" for name, (count, hours) in counts.items())
    is_priced = estimate.money is not None
    money = f", {estimate.money:.2f} by `prices`" if is_priced else ", money unknown: name their types in `prices`"
    return f"about {estimate.hours:.1f} hours on {machines}{money} ({estimate.basis})"


def _show_plan(rows: list[tuple[str, str]], time: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"jobs": [{"job": label, "state": state} for label, state in rows], "time": time}))
        return
    from orchestrator.reporting.tables import print_table

    print_table(["job", "state"], [list(row) for row in rows])
    print(f"{len(rows)} jobs, {sum(state == 'done' for _, state in rows)} done. Time: {time}.")


@app.command(epilog="Example: conclave sweep team.yaml --home runs --json")
def sweep(
    team_file: TeamFile,
    home: HomeDir = DEFAULT_HOME,
    data: DataPath = None,
    address: Annotated[str | None, typer.Option(help="The address of a running Ray cluster, HOST:PORT.")] = None,
    inline: Annotated[bool, typer.Option("--inline", help="Train without Ray, one job after another, for debugging.")] = False,
    cpus: Cpus = None,
    restart: Annotated[list[str] | None, typer.Option(help="Train this member from the start again. Repeatable.")] = None,
    on: Annotated[Path | None, typer.Option(help="Run the sweep on the cluster of this file.", metavar="CLUSTER.YAML")] = None,
    down: Annotated[bool, typer.Option("--down", help="With --on: end the cluster's machines afterwards.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --down: do not ask first.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Try the whole chain with a few images and two steps a training, in a temporary home.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the members, fuse them, and export one model. A finished training is never repeated."""
    if smoke and (on or address or restart):
        raise UserInputError("--smoke tries the team on this machine: it can't be combined with --on, --address or --restart.")
    if on and (address or inline or as_json or cpus):
        raise UserInputError(
            "--on runs the sweep on that cluster: it can't be combined with --address, --inline, --cpus or --json."
        )
    if down and not on:
        raise UserInputError("--down ends a cluster's machines: name its file with --on.")
    if on:
        remote = _remote_sweep(on, home, data, tuple(restart or ()))
        raise typer.Exit(_sweep_on_cluster(team_file, remote, down, yes))
    from orchestrator.cli.screen import Screen
    from orchestrator.execution.ray_backend import RayBackend, inline_executor
    from orchestrator.home import Home
    from orchestrator.reporting.tables import print_summary
    from orchestrator.sweep import SweepOptions, run_sweep
    from orchestrator.tracking.store import TRACKING_URI

    smoke_of = None
    if smoke:
        os.environ.pop(TRACKING_URI, None)
        smoke_of, home = Home(home), Path(tempfile.mkdtemp(prefix="conclave-smoke-"))
    with Screen() as screen, closing(RayBackend(address, screen.say)) as ray:
        options = SweepOptions(
            home=Home(home),
            make_executor=inline_executor if inline else ray.executor,
            on_event=screen.on_event,
            say=screen.say,
            on_packing=screen.on_packing,
            data=data,
            restart=tuple(restart or ()),
            run_search=None if inline else ray.search,
            begin_executor=(lambda wanted: None) if inline else ray.begin,
            smoke_of=smoke_of,
        )
        try:
            result = run_sweep(team_file, options)
        except UserInputError:
            if smoke:
                shutil.rmtree(home, ignore_errors=True)
            raise
    if smoke:
        _end_smoke(home, result, as_json)
    elif as_json:
        print(json.dumps(result.summary.model_dump(mode="json")))
    else:
        print_summary(Home(home), result.summary)
    raise typer.Exit(result.exit_code)


def _end_smoke(home: Path, result: SweepResult, as_json: bool) -> None:
    """Say whether the chain works, and remove its home if it does."""
    summary = result.summary
    if as_json:
        print(json.dumps(summary.model_dump(mode="json")))
    if result.exit_code == 0:
        shutil.rmtree(home, ignore_errors=True)
        if not as_json:
            print(
                f"The whole chain works: {summary.trained} trainings, {len(summary.fusions)} fusions, one model. "
                "Its scores mean nothing."
            )
    elif not as_json:
        for name, member in summary.members.items():
            if member.reason:
                print(f"  {name}: {member.state}: {member.reason}")
        print(f"The chain does not work yet: {summary.state}. The logs are in {home / 'sweeps' / summary.sweep / 'logs'}.")


def _remote_sweep(cluster_file: Path, home: Path, data: Path | None, restart: tuple[str, ...]) -> RemoteSweep:
    from orchestrator.cluster.launcher import Cluster
    from orchestrator.cluster.ray_jobs import RemoteSweep
    from orchestrator.home import Home

    return RemoteSweep(Cluster.ready(cluster_file), Home(home), print, str(data) if data else None, restart=restart)


def _sweep_on_cluster(team_file: Path, remote: RemoteSweep, down: bool, yes: bool) -> int:
    from orchestrator.cluster.ray_jobs import sweep_on_cluster

    if down and not yes and not sys.stdin.isatty():
        raise UserInputError("--down asks for confirmation, and there is no terminal to ask on: say --yes too.")

    def ended() -> None:
        if down and (yes or typer.confirm(f"End the machines of {remote.cluster.name}?", default=True)):
            remote.cluster.down()

    return sweep_on_cluster(team_file, remote, ended)


@app.command(epilog="Example: conclave status cifar-team")
def status(
    name: Annotated[str | None, typer.Argument(help="The sweep to show. The default is all of them.", metavar="[SWEEP]")] = None,
    home: HomeDir = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Show the progress of one sweep or all. Nothing is written."""
    from orchestrator.home import Home
    from orchestrator.reporting.tables import print_table

    home_folder = Home(home)
    names = [home_folder.existing(name).path.name] if name else home_folder.sweeps()
    states = {sweep_name: _status_of(home_folder, sweep_name) for sweep_name in names}
    if as_json:
        print(json.dumps(states))
    elif not states:
        print(f"No sweep in {home} yet.")
    else:
        rows = [[name, s["state"], member, text] for name, s in states.items() for member, text in s["members"].items()]
        print_table(["sweep", "state", "member", "trainings"], rows)


class _Status(TypedDict):
    """A sweep's entry in `conclave status`."""

    state: str
    recommended: str | None
    members: dict[str, str]


def _status_of(home_folder: Home, name: str) -> _Status:
    from workers.storage.artifacts import MemberArtifact

    folder, members = home_folder.sweep(name), {}
    state = folder.state()
    for member, signatures in state.members.items() if state else ():
        done = sum(MemberArtifact.in_home(home_folder.path, signature).done for signature in signatures)
        members[member] = f"{done}/{len(signatures)} trainings done"
    summary = folder.summary()
    last = "unfinished" if summary is None or folder.has_newer_run else summary.state
    return {
        "state": "running" if folder.is_running() else last,
        "recommended": summary.recommended if summary else None,
        "members": members,
    }


@app.command(epilog="Example: conclave doctor")
def doctor(as_json: AsJson = False) -> None:
    """Check PyTorch, GPU, packages and disk of this machine."""
    from orchestrator.cli.doctor import examine

    facts, problems = examine()
    if as_json:
        print(json.dumps({"facts": facts, "problems": problems}))
    else:
        for key, value in facts.items():
            print(f"{key}: {value}")
        print("\n".join(f"PROBLEM: {p}" for p in problems) or "Healthy: nothing is wrong.")
    raise typer.Exit(1 if problems else 0)
