"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workers.errors import UserInputError

TeamFile = Annotated[Path, typer.Argument(help="The team file.", metavar="TEAM.YAML")]
ClusterFile = Annotated[Path, typer.Argument(help="A file of Ray's cluster launcher.", metavar="CLUSTER.YAML")]
SweepName = Annotated[str, typer.Argument(help="The sweep's name, which is `name:` in the team file.", metavar="SWEEP")]
HomeDir = Annotated[
    Path, typer.Option("--home", envvar="CONCLAVE_HOME", help="The home: the folder of data, trainings, runs and results.")
]
DataPath = Annotated[Path | None, typer.Option("--data", help="A folder or an archive to use instead of data.root.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DEFAULT_HOME = Path("conclave-runs")


def check_writable(option: str, path: Path) -> None:
    """Raise UserInputError for a file that can't be written, before anything is done for it."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        problem = "is a folder" if path.is_dir() else "its folder is not there"
        raise UserInputError(f"{option} {path}: {problem}. Name a file.")
