"""Log files that rotate: one for each job and one for the driver of a sweep, and one of the user's for everything else."""

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
    """A rotating file. A disk that takes nothing more loses the message, and nobody hears of it on the screen."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LARGEST_BYTES, backupCount=OLD_FILES, encoding="utf-8", delay=True)
        self.setFormatter(FORMAT)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        """Do nothing."""


def log_name(label: str) -> str:
    """Return the name of the log file of a job or of the driver."""
    return f"{label.replace(' ', '-')}.log"


def append(path: Path, text: str, level: int = logging.INFO) -> None:
    """Append a message to a log file, which is rotated where it has grown large."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _Handler(path)
        handler.handle(logging.LogRecord("conclave", level, "", 0, text, None, None))
        handler.close()


@contextlib.contextmanager
def driver_log(path: Path) -> Iterator[None]:
    """Send what the driver logs to a file, tracebacks of unexpected exceptions among it.

    Such an exception goes on with the attribute `log_path`, so that whoever meets it can say where its traceback is.
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
    """Return the file that has the traceback of an exception; it is written to the user's log where no other has it."""
    known = getattr(error, "log_path", None)
    if isinstance(known, Path):
        return known
    import traceback

    path = user_log_path("conclave") / "conclave.log"
    append(path, "".join(traceback.format_exception(error)), logging.ERROR)
    return path
