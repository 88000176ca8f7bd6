"""Commands on a team file, up to and with the sweep: init, validate, plan, sweep, status, doctor."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.options import DEFAULT_HOME, AsJson, ClusterFile, DataPath, HomeDir, TeamFile
from workers.errors import Rejected

if TYPE_CHECKING:
    from orchestrator.launcher import Cluster
    from orchestrator.plan import Plan

app = typer.Typer()


@app.command(epilog="Example: `conclave init team.yaml`")
def init(path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("team.yaml")) -> None:
    """Write a team file to start from: three small members on the digits data set."""
    if path.exists():
        raise Rejected(f"{path}: exists already. Give another name.")
    try:
        path.write_text((Path(__file__).parent / "templates" / "team.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise Rejected(f"{path}: can't be written ({error.strerror}).") from None
    print(f"{path} is written. Next: conclave sweep {path}")


@app.command(epilog="Example: `conclave validate team.yaml`")
def validate(team_file: TeamFile, as_json: AsJson = False) -> None:
    """Check a team file; nothing is read but it, and nothing is written."""
    from orchestrator import config

    team = config.load(team_file)
    if as_json:
        print(team.model_dump_json())
    else:
        names = ", ".join(m.name for m in team.members)
        print(f"{team_file} is valid: team {team.name}, {len(team.members)} members ({names}).")


@app.command(epilog="Example: `conclave plan team.yaml`")
def plan(
    team_file: TeamFile,
    home: HomeDir = DEFAULT_HOME,
    data: DataPath = None,
    on: Annotated[Path | None, typer.Option(help="A cluster file: its machines, hours, money.", metavar="CLUSTER.YAML")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the jobs, what is already done, and an estimate of the time. Reads the home only."""
    from orchestrator import config, search
    from orchestrator import plan as planning
    from orchestrator.launcher import Cluster
    from workers.data import find

    team = config.load(team_file, data)
    cluster = Cluster.read(on) if on else None
    store = find(team.data, home)
    if store is None:
        folds = team.folds
        jobs = [f"{m.name}{'' if k is None else f' fold {k}'}" for k in (None, *range(folds)) for m in team.members]
        jobs += ["student"] if team.student else []
        _show_plan([(label, "to do") for label in jobs], "unknown until the data is packed: `conclave sweep` packs it", as_json)
        return
    paths = (str(team_file.resolve().parent),)
    found = search.as_far_as_known(team, store, home, paths)
    made = planning.make(found.team, store, home, paths)
    rows = [(f"{one.label} search: {one.left} of {one.space.trials} trials", "to do") for one in found.searches if one.left]
    rows += [(job.label, "done" if job.signature in made.done else "to do") for job in made.jobs]
    searching = " after the search, which is not counted" if any(one.left for one in found.searches) else ""
    _show_plan(rows, _time(made, cluster) + searching if made.todo else "nothing to do", as_json)


def _time(made: Plan, cluster: Cluster | None) -> str:
    """In words: on this machine, or on the machines of a cluster file."""
    from orchestrator import estimate

    if cluster is None:
        seconds, basis = estimate.here(made, os.cpu_count() or 1)
        return f"about {seconds / 60:.1f} minutes on this machine's cores ({basis})"
    try:
        found = estimate.on_cluster(made, cluster.config)
    except Rejected as error:
        raise Rejected(f"{cluster.path}: {error}") from None
    machines = ", ".join(f"{count} {name} ({hours:.1f} hours)" for name, (count, hours) in found.machines.items() if count)
    money = f", {found.money:.2f} by `prices`" if found.money is not None else ", money unknown: name their types in `prices`"
    return f"about {found.hours:.1f} hours on {machines}{money} ({found.basis})"


def _show_plan(rows: list[tuple[str, str]], time: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"jobs": [{"job": label, "state": state} for label, state in rows], "time": time}))
        return
    from orchestrator.tables import print_table

    print_table(["job", "state"], [list(row) for row in rows])
    print(f"{len(rows)} jobs, {sum(state == 'done' for _, state in rows)} done. Time: {time}.")


@app.command(epilog="Example: `conclave sweep team.yaml --home runs --json`")
def sweep(
    team_file: TeamFile,
    home: HomeDir = DEFAULT_HOME,
    data: DataPath = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, HOST:PORT.")] = None,
    inline: Annotated[bool, typer.Option("--inline", help="Without Ray, one job after another: for debugging.")] = False,
    restart: Annotated[list[str] | None, typer.Option(help="Train this member afresh; may be given again.")] = None,
    on: Annotated[Path | None, typer.Option(help="A cluster file: sweep there.", metavar="CLUSTER.YAML")] = None,
    down: Annotated[bool, typer.Option("--down", help="With --on: end the cluster's machines afterwards.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --down: don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train what isn't done, track it, fuse it, export one model. Run again, it trains nothing that is done."""
    if on and (address or inline or as_json):
        raise Rejected("--on sweeps on that cluster: it goes together with neither --address nor --inline nor --json.")
    if down and not on:
        raise Rejected("--down ends a cluster's machines: name its file with --on.")
    if on:
        raise typer.Exit(_sweep_on(team_file, on, home, data, tuple(restart or ()), down, yes))
    from orchestrator import pipeline
    from orchestrator.home import Home
    from orchestrator.pools import OnRay, inline_pool
    from orchestrator.screen import Screen
    from orchestrator.tables import print_summary

    with Screen() as screen, closing(OnRay(address, screen.say)) as ray:
        pool, find = (inline_pool, None) if inline else (ray.pool, ray.search)
        again, answers = tuple(restart or ()), (lambda: None) if inline else ray.answers
        options = pipeline.Options(Home(home), pool, screen.watch, screen.say, screen.pack, data, again, find, answers)
        result = pipeline.sweep(team_file, options)
    if as_json:
        print(json.dumps(result.summary))
    else:
        print_summary(Home(home), result.summary)
    raise typer.Exit(result.exit_code)


def _sweep_on(
    team_file: Path, cluster_file: Path, home: Path, data: Path | None, restart: tuple[str, ...], down: bool, yes: bool
) -> int:
    from orchestrator import remote
    from orchestrator.home import Home
    from orchestrator.launcher import Cluster

    cluster = Cluster.ready(cluster_file)
    asked = remote.Remote(cluster, Home(home), print, str(data) if data else None, restart=restart)
    if down and not yes and not sys.stdin.isatty():
        raise Rejected("--down asks before it ends machines, and there is no terminal to ask on: say --yes too.")

    def ended() -> None:
        if down and (yes or typer.confirm(f"End the machines of {cluster.name}?", default=True)):
            cluster.down()

    return remote.sweep(team_file, asked, ended)


@app.command(epilog="Example: `conclave up cluster.yaml`")
def up(cluster_file: ClusterFile) -> None:
    """Start a cluster's head by Ray's launcher; its workers come when members wait."""
    from orchestrator.launcher import Cluster

    Cluster.ready(cluster_file).up()


@app.command(epilog="Example: `conclave down cluster.yaml`")
def down(cluster_file: ClusterFile) -> None:
    """End all machines of a cluster."""
    from orchestrator.launcher import Cluster

    Cluster.ready(cluster_file).down()


@app.command(epilog="Example: `conclave attach cluster.yaml`")
def attach(cluster_file: ClusterFile) -> None:
    """A shell on a cluster's head."""
    from orchestrator.launcher import Cluster

    raise typer.Exit(Cluster.ready(cluster_file).attach())


@app.command(epilog="Example: `conclave status cifar-team`")
def status(
    name: Annotated[str | None, typer.Argument(help="A sweep; all of them where left out.", metavar="[SWEEP]")] = None,
    home: HomeDir = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """What is done. Reads the home only."""
    from orchestrator.home import Home
    from orchestrator.tables import print_table
    from workers.artifact import MemberArtifact

    place = Home(home)
    names = [place.existing(name).path.name] if name else place.sweeps()
    found: dict[str, Any] = {}
    for sweep_name in names:
        folder = place.sweep(sweep_name)
        members = {
            member: f"{sum(MemberArtifact.of(home, s).done for s in signatures)}/{len(signatures)} fits done"
            for member, signatures in folder.state()["members"].items()
        }
        summary = folder.summary()
        found[sweep_name] = {
            "state": "unfinished" if folder.overtaken else summary.get("state", "unfinished"),
            "recommended": summary.get("recommended"),
            "members": members,
        }
    if as_json:
        print(json.dumps(found))
    elif not found:
        print(f"No sweep in {home} yet.")
    else:
        rows = [[s, e["state"], m, t] for s, e in found.items() for m, t in e["members"].items()]
        print_table(["sweep", "state", "member", "fits"], rows)


@app.command(epilog="Example: `conclave doctor`")
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine: PyTorch, GPU, the packages, and say in words what is wrong."""
    from orchestrator.doctor import examine

    facts, problems = examine()
    if as_json:
        print(json.dumps({"facts": facts, "problems": problems}))
    else:
        for key, value in facts.items():
            print(f"{key}: {value}")
        print("\n".join(f"PROBLEM: {p}" for p in problems) or "Healthy: nothing is wrong.")
    raise typer.Exit(1 if problems else 0)
