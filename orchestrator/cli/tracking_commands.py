"""Commands on tracking: ui, server, sync."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from orchestrator.cli.options import DEFAULT_HOME, AsJson, HomeDir
from workers.errors import CorruptFileError, UserInputError, first_line

app = typer.Typer()


Port = Annotated[int, typer.Option(help="The port.", min=1, max=65535)]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Allow = Annotated[
    list[str] | None, typer.Option(help="A host name that clients may use, NAME:PORT. Repeat the option for several.")
]


@app.command(epilog="Example: conclave ui --port 5001")
def ui(
    home: HomeDir = DEFAULT_HOME,
    host: Host = "127.0.0.1",
    port: Port = 5000,
    allow: Allow = None,
    static_prefix: Annotated[str | None, typer.Option(help="A path before all addresses, as behind a proxy: /NAME.")] = None,
) -> None:
    """Show the MLflow UI of this home, to this machine only unless --host says otherwise. Ctrl-C ends it."""
    from orchestrator.home import Home
    from orchestrator.tracking.server import LOCAL_HOSTS, SAFE, check_port

    home_folder = Home(home)
    if not home_folder.database.is_file():
        raise UserInputError(f"{home}: no runs yet. `conclave sweep` makes some.")
    check_port(host, port)
    shown = f"http://{host}:{port}{static_prefix or ''}/#/experiments?workflowType=machine_learning"
    print(f"{shown}   (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", home_folder.tracking_uri, "--host", host]
    command += ["--allowed-hosts", ",".join((*LOCAL_HOSTS, *(allow or ())))]
    command += ["--static-prefix", static_prefix] if static_prefix else []
    os.execve(sys.executable, [*command, "--port", str(port), "--workers", "1"], {**os.environ, **SAFE})


@app.command(epilog="Example: conclave server --host 0.0.0.0 --allow tracking.lab:5000")
def server(
    home: HomeDir = DEFAULT_HOME,
    host: Host = "127.0.0.1",
    port: Port = 5000,
    database: Annotated[
        str | None, typer.Option(envvar="CONCLAVE_DATABASE", help="postgresql://... The default is a SQLite file in the home.")
    ] = None,
    artifacts: Annotated[str | None, typer.Option(help="A folder or s3://... The default is a folder in the home.")] = None,
    allow: Allow = None,
    background: Annotated[
        bool, typer.Option("--background", help="Return once the server answers. Its log is in the home.")
    ] = False,
) -> None:
    """Run a tracking server for the team. Ctrl-C ends it.

    Before the first start, set the admin's password in MLFLOW_AUTH_ADMIN_PASSWORD.
    """
    from orchestrator.home import Home
    from orchestrator.tracking.server import Server

    tracking_server = Server(Home(home).path, host, port, database, artifacts, tuple(allow or ()))
    if not background:
        tracking_server.start()
    words = [word for word in sys.argv[1:] if word != "--background"]
    tracking_server.in_background([sys.executable, "-m", "conclave", *words])
    print(f"The server answers on port {port}; its log is {home / 'server.log'}.")


@app.command(epilog="Example: conclave sync")
def sync(home: HomeDir = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Send pending entries to the tracking store, after an outage. It is safe to run twice."""
    from workers.tracking.delivery import flush_outbox
    from workers.tracking.outbox import Outbox

    sent, left, problems = 0, 0, set()
    for outbox in Outbox.all_in_home(home):
        if outbox.unsent():
            try:
                sent += flush_outbox(outbox)
            except CorruptFileError as error:
                problems.add(str(error))
            except Exception as error:  # networks, servers and databases raise errors of any type
                problems.add(f"{outbox.uri}: {first_line(error)[:200]}")
        left += len(outbox.unsent())
        if lines := outbox.unreadable():
            problems.add(f"{outbox.path}: {lines} lines can't be read and are skipped")
    if as_json:
        print(json.dumps({"sent": sent, "left": left}))
    else:
        print(f"{sent} entries sent, {left} left.")
    for problem in sorted(problems):
        print(f"conclave: {problem}", file=sys.stderr)
    raise typer.Exit(1 if left else 0)
