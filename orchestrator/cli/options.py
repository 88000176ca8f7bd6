"""Arguments and options that several commands share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from workers.diagnostics.cores import limit_cores
from workers.errors import UserInputError
from workers.storage.files import UMASK

TeamFile = Annotated[Path, typer.Argument(help="The team file.", metavar="TEAM.YAML")]
ClusterFile = Annotated[Path, typer.Argument(help="A file of Ray's cluster launcher.", metavar="CLUSTER.YAML")]
SweepName = Annotated[str, typer.Argument(help="The sweep's name, which is `name:` in the team file.", metavar="SWEEP")]
HomeDir = Annotated[
    Path, typer.Option("--home", envvar="CONCLAVE_HOME", help="The home: the folder of data, trainings, runs and results.")
]
DataPath = Annotated[Path | None, typer.Option("--data", help="A folder or an archive to use instead of data.root.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
ForSpreadsheet = Annotated[
    bool, typer.Option("--spreadsheet", help="Put a ' before a cell that a spreadsheet would take for a formula.")
]


def _limit_cores(count: int | None) -> int | None:
    if count:
        limit_cores(count)
    return count


Cpus = Annotated[
    int | None, typer.Option("--cpus", min=1, callback=_limit_cores, help="Use at most this many cores of this machine.")
]
DEFAULT_HOME = Path("conclave-runs")
SCHEMA_NAME = "conclave.schema.json"  # written next to the team file, which refers to it in its first line
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # a cell that starts with one is evaluated


def check_writable(option: str, path: Path) -> None:
    """Raise UserInputError if a file can't be written, before any work is done."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        problem = "is a folder" if path.is_dir() else "its folder is not there"
        raise UserInputError(f"{option} {path}: {problem}. Name a file.")


def write_csv(file: TextIO, rows: Iterable[Sequence[str]], for_spreadsheet: bool, delimiter: str = ",") -> None:
    """Write CSV rows one by one, in constant memory; for a spreadsheet, escape what it would evaluate as a formula."""
    import csv

    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(map(_harmless, rows) if for_spreadsheet else rows)


def _harmless(row: Sequence[str]) -> list[str]:
    """Escape the cells that a spreadsheet would take for formulas."""
    return [f"'{cell}" if cell.startswith(FORMULAS) else cell for cell in row]


@contextmanager
def new_file(option: str, path: Path) -> Iterator[TextIO]:
    """Write a text file that appears only once complete. Raises UserInputError if it cannot be written."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserInputError(f"{option} {path}: can't be written ({error.strerror}).") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        os.chmod(temporary, 0o666 & ~UMASK)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise UserInputError(f"{option} {path}: can't be written ({error.strerror}).") from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
