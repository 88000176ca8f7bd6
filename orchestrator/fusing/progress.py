"""Report the progress of the fusion step across processes: it writes a line per step, and the driver shows it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FILE = "fusing.steps"  # in the log folder
LOOK_SECONDS = 0.3
SHOWN_SECONDS = 0.05  # shorter steps are not shown


@dataclass
class Steps:
    """Writes a line for each finished step, with its duration.

    Attributes:
        path: The file; None to write nothing.
        seconds: Seconds of each finished step.
    """

    path: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Create or truncate the file."""
        if self.path:
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text("", encoding="utf-8")

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Time a step and write its line. If the disk is full, only the line is lost."""
        began = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - began
        if self.path and self.seconds[what] >= SHOWN_SECONDS:
            with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
                file.write(f"{what}: {self.seconds[what]:.1f} s\n")


@contextlib.contextmanager
def follow(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Show each line of a file of steps as it comes, until the context ends.

    Args:
        path: The file.
        say: Shows a line to the user.
    """
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    over, shown = threading.Event(), 0

    def show() -> None:
        nonlocal shown
        with contextlib.suppress(OSError):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # an unfinished line waits
            for line in lines[shown if shown <= len(lines) else 0 :]:  # the file restarts if the fusion is retried
                say(f"fusing: {line}")
            shown = len(lines)

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            show()

    thread = threading.Thread(target=watch, daemon=True, name="conclave-fusing")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        show()
