"""Console script: a thin Typer app that turns errors into a message and an exit code.

Exit codes: 0 done, 1 failed, 2 rejected with nothing trained, 3 partial, 130 interrupted and resumable.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import sys
import traceback
from typing import Annotated

import typer

from orchestrator.cli import cluster_commands, data_commands, label_commands, result_commands, team_commands, tracking_commands
from workers.diagnostics import interrupts
from workers.errors import ConclaveError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # a markup mode makes every command load a Markdown parser
    help="Train a team of image classifiers, fuse them, and export one model.\n\n"
    "Start with `conclave init team.yaml`, then run `conclave sweep team.yaml`.",
)
DEBUG = "--debug"
for group in (team_commands, data_commands, result_commands, label_commands, cluster_commands, tracking_commands):
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
    """Accept the options that come before a command."""


def main() -> None:
    """Run the command line."""
    interrupts.listen()
    for stream in (sys.stdout, sys.stderr):  # escape file names that the terminal can't show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if DEBUG in sys.argv:  # accepted before and after the command
        sys.argv.remove(DEBUG)
        os.environ["CONCLAVE_DEBUG"] = "1"
    try:
        code = app(standalone_mode=False)  # so that Typer returns the exit code instead of exiting
        sys.stdout.flush()
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
        _let_go_of_stdout()
        gc.freeze()  # skip the final garbage collection over all of torch


def _let_go_of_stdout() -> None:
    """Drop what stdout does not take, for Python would end with a message and a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail_unexpectedly(error: Exception) -> None:
    """Report an exception that is no ConclaveError, and exit."""
    if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error of the command line
        error.show()
        sys.exit(error.exit_code)
    if isinstance(error, OSError):
        _fail(_about_file(error), 1, error)
    from workers.diagnostics.logs import log_unexpected

    said = " ".join(str(error).split())[:300]
    text = f"something unexpected happened ({type(error).__name__}: {said}). The traceback is in {log_unexpected(error)}"
    _fail(text, 1, error)


def _about_file(error: OSError) -> str:
    """Return the message for an OSError about a file or a disk."""
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "requested and" in said:  # NumPy's wording
        place = f" ({error.filename})" if error.filename else ""
        return f"there is no room left on the disk{place}: free some space and run again. Finished work is kept"
    if error.errno == errno.EIO and error.filename is None:
        return "the terminal, or a disk, is gone (input/output error). What is finished is kept: run again"
    if error.errno == errno.EROFS:
        return f"{error.filename}: the disk can only be read. Run again once it can be written; what is finished is kept"
    if error.filename is None:
        return f"the system refuses something ({said}). Run again; what is finished is kept"
    hint = "Move it elsewhere" if error.errno in (errno.EISDIR, errno.ENOTDIR) else "Check its permissions"
    return f"{error.filename}: {said[0].lower()}{said[1:]}. {hint}, and run again; what is finished is kept"


def _fail(text: str, code: int, error: BaseException | None = None) -> None:
    if error and os.environ.get("CONCLAVE_DEBUG"):
        traceback.print_exception(error)
    with contextlib.suppress(OSError):  # the terminal may be what is gone
        print(f"conclave: {text}", file=sys.stderr, flush=True)
    sys.exit(code)
