"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TeamFile = Annotated[Path, typer.Argument(help="The team file.", metavar="TEAM.YAML")]
ClusterFile = Annotated[Path, typer.Argument(help="A file of Ray's cluster launcher.", metavar="CLUSTER.YAML")]
SweepName = Annotated[str, typer.Argument(help="The sweep's name, which is `name:` in the team file.", metavar="SWEEP")]
HomeDir = Annotated[
    Path, typer.Option("--home", envvar="CONCLAVE_HOME", help="The home: the folder of data, trainings, runs and results.")
]
DataPath = Annotated[Path | None, typer.Option("--data", help="A folder or an archive to use instead of data.root.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DEFAULT_HOME = Path("conclave-runs")
