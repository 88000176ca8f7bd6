"""The command line: a thin Typer app. Exit codes: 0 done, 1 failed, 2 rejected, 3 partial, 130 interrupted."""

from __future__ import annotations

import signal
import sys

import typer

from orchestrator import result_commands, team_commands
from workers.errors import ConclaveError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train a team of image classifiers, fuse them, export one model.\n\n"
    "Start: `conclave init team.yaml`, then `conclave sweep team.yaml`.",
)
app.add_typer(team_commands.app)
app.add_typer(result_commands.app)


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
