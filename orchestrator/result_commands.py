"""Commands on what a sweep made: fuse, predict, export, report, ui."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.options import DEFAULT_HOME, AsJson, HomeDir, SweepName
from workers.errors import Rejected

if TYPE_CHECKING:
    from orchestrator.home import SweepFolder

app = typer.Typer()


@app.command(epilog="Example: `conclave fuse cifar-team --drop weak --method vote --method stack`")
def fuse(
    name: SweepName,
    method: Annotated[list[str] | None, typer.Option(help="A fusion to fit; may be given again.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Members to leave out; commas or given again.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Members to fuse; commas or given again.")] = None,
    also: Annotated[list[str] | None, typer.Option("--with", help="Another sweep of the same data and split.")] = None,
    home: HomeDir = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Fit the fusions again from the artifacts: no training, no Ray, nothing of the sweep changed."""
    from orchestrator import refit, report
    from orchestrator.tables import print_table

    request = refit.chosen(refit.joined(home, name, method, also or ()), drop or (), only or ())
    details = refit.fuse_apart(request)
    if as_json:
        print(json.dumps(details))
        return
    rows = report.rows({"members": request.members}, details)
    keys = ("name", "accuracy", "nll", "gain", "train", "inference", "recommended")
    print_table(list(keys), [[row[key] for key in keys] for row in rows])
    for line in (report.verdict(details), details["diversity"]["verdict"], *details["warnings"]):
        print(line)


@app.command(epilog="Example: `conclave predict conclave-runs/sweeps/digits/fused.onnx photos/ --out guesses.csv`")
def predict(
    model: Annotated[Path, typer.Argument(help="A fused.onnx.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders or archives.")],
    out: Annotated[Path | None, typer.Option(help="CSV to write; stdout where left out.")] = None,
    runtime: Annotated[str, typer.Option(help="auto (onnx, or torch where it is faster), onnx, torch, torch-bfloat16.")] = "auto",
) -> None:
    """Class probabilities of images, as CSV: file, class, probability."""
    import csv
    import io

    from fusion.predict import Predictor
    from fusion.runtimes import NAMES

    if runtime not in NAMES:
        raise Rejected(f"--runtime {runtime}: unknown; known are {', '.join(NAMES)}.")
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["file", "class", "probability"])
    for name, label, probability in Predictor(model, runtime).rows(images):
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
    int8: Annotated[bool, typer.Option("--int8", help="In 8-bit integers; says what that costs in accuracy.")] = False,
    home: HomeDir = DEFAULT_HOME,
) -> None:
    """Export any fusion or member as one model file, or the outputs that the fusions were made from."""
    from orchestrator.home import Home

    folder = Home(home).existing(name)
    if method is None and outputs is None:
        raise Rejected("export: say what: --method NAME for a model, or --outputs FILE.npz.")
    target = out or Path(f"{name}-{method}.onnx")
    if outputs:
        _can_be_written("--outputs", outputs)
    if method:
        _can_be_written("--out", target)
    if method and target.suffix in (".json", ".safetensors"):
        raise Rejected(f"--out {target}: the model's torch form goes to files of these names; name the model itself .onnx.")
    if outputs:
        _export_outputs(folder, outputs)
    if method:
        _export_model(home, name, method, target, int8)


def _can_be_written(option: str, path: Path) -> None:
    """Before anything is fitted for it."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise Rejected(f"{option} {path}: {'is a folder' if path.is_dir() else 'its folder is not there'}. Name a file.")


def _export_outputs(folder: SweepFolder, outputs: Path) -> None:
    import shutil

    if not folder.outputs.is_file():
        raise Rejected(f"sweep {folder.path.name}: not fused yet. Run `conclave sweep` first.")
    try:
        shutil.copyfile(folder.outputs, outputs)
    except OSError as error:
        raise Rejected(f"--outputs {outputs}: can't be written ({error.strerror}).") from None
    print(f"{outputs} is written.")


def _export_model(home: Path, name: str, method: str, target: Path, int8: bool) -> None:
    from dataclasses import replace

    from fusion.names import KNOWN
    from orchestrator import refit
    from orchestrator.fusing import prepare, write_integers, write_model

    request = refit.request_of(home, name)
    if method not in (*request.members, *KNOWN):
        raise Rejected(f"--method {method}: not in this sweep; there are {', '.join((*request.members, *KNOWN))}.")
    made = prepare(replace(request, fusions=() if method in request.members else (method,)))
    if method not in made.fitted:
        raise Rejected(f"--method {method}: can't be made of what this sweep trained (see its report's warnings).")
    try:
        difference = write_model(request, made, method, target)
    except OSError as error:
        raise Rejected(f"--out {target}: can't be written ({error.strerror}).") from None
    print(f"{target} is written; it differs from the fusion by at most {difference:.1e}.")
    if int8:
        small = target.with_suffix(".int8.onnx")
        print(f"{small} is written: right on {write_integers(request, made, target, small)}.")


@app.command(epilog="Example: `conclave report digits`")
def report(name: SweepName, home: HomeDir = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Print a finished sweep's table and verdict, and where its HTML report is."""
    from orchestrator.home import Home
    from orchestrator.tables import print_summary

    folder = Home(home).existing(name)
    summary = folder.summary()
    if not summary:
        raise Rejected(f"sweep {name}: not finished yet. Run `conclave sweep` again; what is done is kept.")
    if as_json:
        print(json.dumps({**summary, "details": folder.details()}))
    else:
        if folder.overtaken:
            print("A later run of this sweep is under way, or did not end; this is of the one before:")
        print_summary(Home(home), summary)


@app.command(epilog="Example: `conclave ui --port 5001`")
def ui(home: HomeDir = DEFAULT_HOME, port: Annotated[int, typer.Option(help="The port on this machine.")] = 5000) -> None:
    """Open the MLflow UI on this home, on this machine only. Ctrl-C ends it."""
    from orchestrator.home import Home
    from orchestrator.server import SAFE

    place = Home(home)
    if not (home / "mlflow.db").is_file():
        raise Rejected(f"{home}: no runs yet. `conclave sweep` makes some.")
    print(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning   (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", place.tracking_uri, "--host", "127.0.0.1"]
    hosts = ["--allowed-hosts", f"localhost:{port},127.0.0.1:{port}"]
    os.execve(sys.executable, [*command, *hosts, "--port", str(port), "--workers", "1"], {**os.environ, **SAFE})


@app.command(epilog="Example: `conclave server --host 0.0.0.0 --allow tracking.lab:5000`")
def server(
    home: HomeDir = DEFAULT_HOME,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.")] = 5000,
    database: Annotated[str | None, typer.Option(envvar="CONCLAVE_DATABASE", help="postgresql://...; else SQLite.")] = None,
    artifacts: Annotated[str | None, typer.Option(help="A folder or s3://...; in the home where left out.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="A name that clients may call it by, NAME:PORT.")] = None,
    postgres: Annotated[Path | None, typer.Option(help="A folder for a PostgreSQL of its own, made at the first start.")] = None,
    background: Annotated[bool, typer.Option("--background", help="Come back once it answers; the log is in the home.")] = False,
) -> None:
    """The team's tracking server, behind a password (MLFLOW_AUTH_ADMIN_PASSWORD, for the first start). Ctrl-C ends it."""
    from orchestrator.server import Server

    asked = Server(home, host, port, database, artifacts, tuple(allow or ()), postgres)
    if not background:
        raise typer.Exit(asked.run())
    asked.in_background([sys.executable, "-m", "orchestrator", *[word for word in sys.argv[1:] if word != "--background"]])
    print(f"The server answers on port {port}; its log is {home / 'server.log'}.")


@app.command(epilog="Example: `conclave sync`")
def sync(home: HomeDir = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Send what the tracking store has not got yet, because it was away. Twice is the same as once."""
    from workers.delivery import deliver
    from workers.spool import Spool

    sent, left, troubles = 0, 0, set()
    for spool in Spool.all(home):
        if spool.unsent():
            try:
                sent += deliver(spool)
            except Exception as error:
                troubles.add(f"{spool.uri}: {str(error).splitlines()[0][:200]}")
        left += len(spool.unsent())
    if as_json:
        print(json.dumps({"sent": sent, "left": left}))
    else:
        print(f"{sent} entries sent, {left} left.")
    for trouble in sorted(troubles):
        print(f"conclave: {trouble}", file=sys.stderr)
    raise typer.Exit(1 if left else 0)
