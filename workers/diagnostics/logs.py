"""Rotating log files: one per job, one for the driver of a sweep, and one per user for everything else."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path

from platformdirs import user_log_path

LARGEST_BYTES, OLD_FILES = 1_000_000, 2
FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
DRIVER = logging.getLogger("conclave")


class _Handler(RotatingFileHandler):
    """A rotating log file. If the disk is full, messages are dropped silently."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LARGEST_BYTES, backupCount=OLD_FILES, encoding="utf-8", delay=True)
        self.setFormatter(FORMAT)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        """Do nothing."""


def log_name(label: str) -> str:
    """Return the name of the log file of a job or of the driver."""
    return f"{label.replace(' ', '-')}.log"


def append(path: Path, text: str, level: int = logging.INFO) -> None:
    """Append a message to a log file, and rotate the file if it is large."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _Handler(path)
        handler.handle(logging.LogRecord("conclave", level, "", 0, text, None, None))
        handler.close()


@contextlib.contextmanager
def driver_log(path: Path) -> Iterator[None]:
    """Send the driver's log to a file, with the tracebacks of unexpected exceptions.

    The exception is raised again with the attribute `log_path`, so that its handler can name the log.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    handler = _Handler(path)
    DRIVER.addHandler(handler)
    DRIVER.setLevel(logging.INFO)
    DRIVER.propagate = False
    try:
        yield
    except Exception as error:
        DRIVER.exception("%s", error)
        error.log_path = path  # type: ignore[attr-defined]
        raise
    finally:
        DRIVER.removeHandler(handler)
        handler.close()


def log_unexpected(error: BaseException) -> Path:
    """Return the log that has an exception's traceback, writing it to the user's log if no other has it."""
    known = getattr(error, "log_path", None)
    if isinstance(known, Path):
        return known
    import traceback

    path = user_log_path("conclave") / "conclave.log"
    append(path, "".join(traceback.format_exception(error)), logging.ERROR)
    return path
