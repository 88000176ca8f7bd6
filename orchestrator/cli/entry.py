"""The console script: a thin Typer app whose errors become a sentence and an exit code.

Exit codes: 0 done, 1 failed, 2 rejected with nothing trained, 3 partial, 130 interrupted and resumable.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
import traceback
from typing import Annotated

import typer

from orchestrator.cli import cluster_commands, interrupts, label_commands, result_commands, team_commands, tracking_commands
from workers.errors import ConclaveError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with one, each command would wait for a Markdown parser
    help="Train a team of image classifiers, fuse them, and export one model.\n\n"
    "Start with `conclave init team.yaml`, then run `conclave sweep team.yaml`.",
)
DEBUG = "--debug"
for group in (team_commands, result_commands, label_commands, cluster_commands, tracking_commands):
    app.add_typer(group.app)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        print(f"conclave {version('conclave-ensembles')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the tracebacks of errors on the screen.")] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line."""
    interrupts.listen()
    for stream in (sys.stdout, sys.stderr):  # a file's name that the terminal can't show is escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if DEBUG in sys.argv:  # before or behind the command, as people write it
        sys.argv.remove(DEBUG)
        os.environ["CONCLAVE_DEBUG"] = "1"
    try:
        code = app(standalone_mode=False)  # without it Typer returns a command's exit code instead of leaving
        sys.exit(code if isinstance(code, int) else 0)
    except ConclaveError as error:
        _fail(str(error), error.exit_code, error)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted: what is finished is kept; the same command goes on from there", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        _fail_unexpectedly(error)
    finally:
        gc.freeze()  # or Python would look through all of torch for garbage before it leaves


def _fail_unexpectedly(error: Exception) -> None:
    """Say what happened that is none of our own errors, and leave."""
    if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error of the command line
        error.show()
        sys.exit(error.exit_code)
    if isinstance(error, OSError):
        _fail(_about_file(error), 1, error)
    from workers.diagnostics.logs import log_unexpected

    said = " ".join(str(error).split())[:300]
    text = f"something unexpected happened ({type(error).__name__}: {said}). The log has it all: {log_unexpected(error)}"
    _fail(text, 1, error)


def _about_file(error: OSError) -> str:
    """Return a sentence for what the system says of a file, or of a disk."""
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "requested and" in said:  # which is NumPy's way to say it
        place = f" ({error.filename})" if error.filename else ""
        return f"there is no room left on the disk{place}: make some, and run again. What is finished is kept"
    if error.errno == errno.EROFS:
        return f"{error.filename}: the disk can only be read. Run again once it can be written; what is finished is kept"
    if error.filename is None:
        return f"the system refuses something ({said}). Run again; what is finished is kept"
    hint = "Move what is there elsewhere" if error.errno in (errno.EISDIR, errno.ENOTDIR) else "See who may use it"
    return f"{error.filename}: {said[0].lower()}{said[1:]}. {hint}, and run again; what is finished is kept"


def _fail(text: str, code: int, error: BaseException | None = None) -> None:
    if error and os.environ.get("CONCLAVE_DEBUG"):
        traceback.print_exception(error)
    print(f"conclave: {text}", file=sys.stderr, flush=True)
    sys.exit(code)
