"""The command line: a thin Typer app. Exit codes: 0 done, 1 failed, 2 rejected, 3 partial, 130 interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.errors import ConclaveError, Rejected

if TYPE_CHECKING:
    from orchestrator.fusing import Request
    from orchestrator.plan import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train a team of image classifiers, fuse them, export one model.\n\n"
    "Start: `conclave init team.yaml`, then `conclave sweep team.yaml`.",
)

TeamFile = Annotated[Path, typer.Argument(help="The team file.", metavar="TEAM.YAML")]
SweepName = Annotated[str, typer.Argument(help="The sweep's name: `name:` in the team file.", metavar="SWEEP")]
HomeDir = Annotated[Path, typer.Option("--home", envvar="CONCLAVE_HOME", help="Where everything lives.")]
DataPath = Annotated[Path | None, typer.Option("--data", help="Folder or archive to use instead of data.root.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
DEFAULT_HOME = Path("conclave-runs")


def main() -> None:
    """The console script: errors become a sentence and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)  # without it Typer gives a command's exit code back instead of leaving
        sys.exit(code if isinstance(code, int) else 0)
    except ConclaveError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted: what is finished is kept; the same command goes on from there", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error of the command line
            error.show()
            sys.exit(error.exit_code)
        raise


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(text: str, code: int) -> None:
    print(f"conclave: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


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
def plan(team_file: TeamFile, home: HomeDir = DEFAULT_HOME, data: DataPath = None, as_json: AsJson = False) -> None:
    """Show the jobs, what is already done, and an estimate of the time. Reads the home only."""
    from orchestrator import config
    from orchestrator import plan as planning
    from workers.data import find

    team = config.load(team_file, data)
    store = find(team.data, home)
    if store is None:
        folds = team.data.folds if "stack" in team.fusion else 0
        jobs = [f"{m.name}{'' if k is None else f' fold {k}'}" for k in (None, *range(folds)) for m in team.members]
        _show_plan([(label, "to do") for label in jobs], "unknown until the data is packed: `conclave sweep` packs it", as_json)
        return
    made = planning.make(team, store, home, (str(team_file.resolve().parent),))
    seconds, basis = planning.seconds(made, os.cpu_count() or 1)
    rows = [(job.label, "done" if job.signature in made.done else "to do") for job in made.jobs]
    _show_plan(
        rows, f"about {seconds / 60:.1f} minutes on this machine's cores ({basis})" if made.todo else "nothing to do", as_json
    )


def _show_plan(rows: list[tuple[str, str]], time: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"jobs": [{"job": label, "state": state} for label, state in rows], "time": time}))
        return
    from orchestrator.screen import print_table

    print_table(["job", "state"], [list(row) for row in rows])
    print(f"{len(rows)} jobs, {sum(state == 'done' for _, state in rows)} done. Time: {time}.")


@app.command(epilog="Example: `conclave sweep team.yaml --home runs --json`")
def sweep(
    team_file: TeamFile,
    home: HomeDir = DEFAULT_HOME,
    data: DataPath = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, HOST:PORT.")] = None,
    inline: Annotated[bool, typer.Option("--inline", help="Without Ray, one job after another: for debugging.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train what isn't done, track it, fuse it, export one model. Run again, it trains nothing that is done."""
    from orchestrator import pipeline
    from orchestrator.home import Home
    from orchestrator.screen import Screen

    with Screen() as screen:
        pool = pipeline.Inline if inline else pipeline.ray_pool(address)
        options = pipeline.Options(Home(home), pool, screen.watch, screen.say, screen.pack, data)
        result = pipeline.sweep(team_file, options)
    if as_json:
        print(json.dumps(result.summary))
    else:
        _show(Home(home), result.summary)
    raise typer.Exit(result.exit_code)


def _show(home: Any, summary: dict[str, Any]) -> None:
    from orchestrator import report
    from orchestrator.screen import print_table

    counts = f"{summary['trained']} jobs trained now, {summary['reused']} found done"
    print(f"Sweep {summary['sweep']}: {summary['state']}; {counts}.")
    for name, member in summary["members"].items():
        if member["reason"]:
            print(f"  {name}: {member['state']}: {member['reason']}")
    folder = home.sweep(summary["sweep"])
    details = folder.details()
    if summary["state"] == "interrupted":
        print("Interrupted: what is finished is kept; the same command goes on from there.")
    if summary["state"] in ("failed", "interrupted") or not details:
        return
    keys = {"name": "", "accuracy": "accuracy", "nll": "NLL", "gain": f"points over {details['best_single']}"}
    keys |= {"p": "p", "train": "training", "inference": "inference"}
    rows = report.rows(summary, details)
    marked = next(i for i, row in enumerate(rows) if row["recommended"])
    print_table(list(keys.values()), [[row[key] for key in keys] for row in rows], marked)
    for line in (report.verdict(details), *details["warnings"]):
        print(line)
    print(f"Model:   {summary['model']}\nReport:  {folder.report}\nBrowse:  conclave ui --home {home.path}")


@app.command(epilog="Example: `conclave status cifar-team`")
def status(
    name: Annotated[str | None, typer.Argument(help="A sweep; all of them where left out.", metavar="[SWEEP]")] = None,
    home: HomeDir = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """What is done. Reads the home only."""
    from orchestrator.home import Home
    from orchestrator.screen import print_table
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
            "state": summary.get("state", "unfinished"),
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


@app.command(epilog="Example: `conclave fuse cifar-team --method vote --method stack`")
def fuse(
    name: SweepName,
    method: Annotated[list[str] | None, typer.Option(help="A fusion to fit; may be given again.")] = None,
    home: HomeDir = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Fit the fusions again from the artifacts: no training, no Ray, nothing of the sweep changed."""
    from orchestrator import report
    from orchestrator.screen import print_table

    request = _request(home, name, method)
    details = _fuse_apart(request)
    if as_json:
        print(json.dumps(details))
        return
    rows = report.rows({"members": request.members}, details)
    keys = ("name", "accuracy", "nll", "gain", "train", "inference", "recommended")
    print_table(list(keys), [[row[key] for key in keys] for row in rows])
    print(report.verdict(details))


def _fuse_apart(request: Request) -> dict[str, Any]:
    """Fuse in a folder that goes away, so that the sweep's own results stay as they are."""
    import tempfile
    from dataclasses import replace

    from orchestrator.fusing import fuse

    with tempfile.TemporaryDirectory() as work:
        return fuse(replace(request, sweep=Path(work)))


def _request(home: Path, name: str, methods: list[str] | None = None) -> Request:
    """What the fusion step needs, from the home alone."""
    from orchestrator import pipeline
    from orchestrator.config import FUSIONS
    from orchestrator.home import Home

    unknown = [m for m in methods or () if m not in FUSIONS]
    if unknown:
        raise Rejected(f"--method {unknown[0]}: unknown; known are {', '.join(FUSIONS)}.")
    folder = Home(home).existing(name)
    made = _plan_of(home, name)
    if methods:
        made = type(made)(made.team.model_copy(update={"fusion": tuple(methods)}), made.store, made.jobs, made.done)
    members = pipeline.judge(made, {})
    missing = [n for n, m in members.items() if m["state"] != "done"]
    if len(missing) == len(members):
        raise Rejected(f"sweep {name}: no member is done yet. Run `conclave sweep` first.")
    return pipeline.make_request(made, members, folder, None, None)


def _plan_of(home: Path, name: str) -> Plan:
    from orchestrator import config, teamfile
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
    return planning.make(team, store, home, (str(origin.parent),))


def _parsed(path: Path) -> tuple[dict[str, Any], Any]:
    from orchestrator import teamfile

    document = teamfile.read(path)
    return document.values, document.root


@app.command(epilog="Example: `conclave predict conclave-runs/sweeps/digits/fused.onnx photos/ --out guesses.csv`")
def predict(
    model: Annotated[Path, typer.Argument(help="A fused.onnx.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders or archives.")],
    out: Annotated[Path | None, typer.Option(help="CSV to write; stdout where left out.")] = None,
) -> None:
    """Class probabilities of images, as CSV: file, class, probability."""
    import csv
    import io

    from fusion.predict import Predictor

    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["file", "class", "probability"])
    for name, label, probability in Predictor(model).rows(images):
        writer.writerow([name, label, f"{probability:.7g}"])
    if out is None:
        sys.stdout.write(buffer.getvalue())
        return
    from workers.files import write_bytes

    try:
        write_bytes(out, buffer.getvalue().encode())
    except OSError as error:
        raise Rejected(f"--out {out}: can't be written ({error.strerror}).") from None


@app.command(epilog="Example: `conclave export digits --method stack --out stack.onnx`")
def export(
    name: SweepName,
    method: Annotated[str | None, typer.Option(help="A fusion or a member to export.")] = None,
    out: Annotated[Path | None, typer.Option(help="The model file; SWEEP-METHOD.onnx where left out.")] = None,
    outputs: Annotated[Path | None, typer.Option(help="Write what every fusion was made from, FILE.npz.")] = None,
    home: HomeDir = DEFAULT_HOME,
) -> None:
    """Export any fusion or member as one model file, or the outputs that the fusions were made from."""
    import shutil

    from orchestrator.home import Home

    folder = Home(home).existing(name)
    if method is None and outputs is None:
        raise Rejected("export: say what: --method NAME for a model, or --outputs FILE.npz.")
    if outputs is not None:
        if not folder.outputs.is_file():
            raise Rejected(f"sweep {name}: not fused yet. Run `conclave sweep` first.")
        shutil.copyfile(folder.outputs, outputs)
        print(f"{outputs} is written.")
    if method is not None:
        from orchestrator.fusing import prepare, write_model

        request = _request(home, name)
        known = [*request.members, *request.fusions]
        if method not in known:
            raise Rejected(f"--method {method}: not in this sweep; there are {', '.join(known)}.")
        gathered, fitted, networks, _ = prepare(request)
        target = out or Path(f"{name}-{method}.onnx")
        difference = write_model(request, gathered, fitted[method], networks, target)
        print(f"{target} is written; it differs from the fusion by at most {difference:.1e}.")


@app.command(epilog="Example: `conclave report digits`")
def report(name: SweepName, home: HomeDir = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Print a finished sweep's table and verdict, and where its HTML report is."""
    from orchestrator.home import Home

    folder = Home(home).existing(name)
    summary = folder.summary()
    if not summary:
        raise Rejected(f"sweep {name}: not finished yet. Run `conclave sweep` again; what is done is kept.")
    if as_json:
        print(json.dumps({**summary, "details": folder.details()}))
    else:
        _show(Home(home), summary)


@app.command(epilog="Example: `conclave ui --port 5001`")
def ui(home: HomeDir = DEFAULT_HOME, port: Annotated[int, typer.Option(help="The port on this machine.")] = 5000) -> None:
    """Open the MLflow UI on this home, on this machine only. Ctrl-C ends it."""
    from orchestrator.home import Home

    place = Home(home)
    if not (home / "mlflow.db").is_file():
        raise Rejected(f"{home}: no runs yet. `conclave sweep` makes some.")
    print(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning   (Ctrl-C ends it)", flush=True)
    safe = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", place.tracking_uri, "--host", "127.0.0.1"]
    os.execve(sys.executable, [*command, "--port", str(port), "--workers", "1"], {**os.environ, **safe})


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
