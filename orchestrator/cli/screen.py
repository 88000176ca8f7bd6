"""Show a running sweep: a live table on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Concatenate, ParamSpec

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from orchestrator.execution.executor import Event
from workers.diagnostics.callback import Epoch, held_out_metric
from workers.diagnostics.logs import DRIVER

Given = ParamSpec("Given")


@dataclass
class _Row:
    epochs: int
    state: str = "waiting"
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    text: str = ""

    @property
    def left(self) -> str:
        if self.state != "training" or not self.metrics:
            return ""
        return f"{(self.epochs - self.epoch) * self.metrics['seconds']:.0f} s"


def _while_shown(method: Callable[Concatenate[Screen, Given], None]) -> Callable[Concatenate[Screen, Given], None]:
    """Let a method show nothing more once the terminal is gone or takes no more: output never ends a sweep."""

    @wraps(method)
    def call(self: Screen, /, *given: Given.args, **named: Given.kwargs) -> None:
        if self.is_gone:
            return
        try:
            method(self, *given, **named)
        except OSError as error:
            self.is_gone = True
            DRIVER.warning("the terminal takes no more output (%s)", error)

    return call


class Screen:
    """Follows the events of a sweep. Use it as a context manager.

    Attributes:
        is_gone: Whether the terminal takes no more output.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.rows: dict[str, _Row] = {}
        self.live = Live(console=self.console, refresh_per_second=4, transient=False) if self.console.is_terminal else None
        self.packed = 0.0
        self.bar: Progress | None = None
        self.is_gone = False

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @_while_shown
    def _end(self) -> None:
        self._packing_ended()
        if self.live and self.live.is_started:
            self.live.stop()

    @_while_shown
    def say(self, text: str) -> None:
        """Show a line."""
        self._packing_ended()
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)  # an error's text may have brackets

    @_while_shown
    def on_packing(self, rows: int, expected: int | None) -> None:
        """Show how many images are decoded: a bar on a terminal, a line every two seconds elsewhere."""
        if self.console.is_terminal:
            if self.bar is None:
                columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                self.bar = Progress(*columns, console=self.console)
                self.task = self.bar.add_task("", total=expected)
                self.bar.start()
            self.bar.update(self.task, completed=rows)
        elif time.monotonic() - self.packed > 2 or rows == expected:
            self.packed = time.monotonic()
            self.console.print(f"decoded {rows:,} images" + (f" of {expected:,}" if expected else ""), highlight=False)

    def _packing_ended(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    @_while_shown
    def on_event(self, event: Event) -> None:
        """Update the display for an event."""
        self._packing_ended()
        if event.kind == "working" or (event.kind == "published" and len(event.job.members) == 1):
            return
        row = self.rows.setdefault(event.job.label, _Row(event.job.train.epochs))
        if event.kind == "epoch":
            row.epoch, row.metrics = event.epoch, dict(event.metrics)
        elif event.kind == "started":
            row.state = "training"
        elif event.kind not in ("note", "published"):
            row.state = {"retry": "waiting"}.get(event.kind, event.kind)
        row.text = row.text if event.kind == "published" else event.text or row.text
        self._draw(event, row)
        if event.trace and os.environ.get("CONCLAVE_DEBUG"):
            self.say(event.trace)

    def _draw(self, event: Event, row: _Row) -> None:
        if self.live:
            if not self.live.is_started:
                self.live.start()
            self.live.update(self._table())
            return
        m = row.metrics
        detail = f"epoch {row.epoch}/{row.epochs}" if event.kind == "epoch" else event.kind
        if event.kind == "epoch" and m:
            detail += f"  loss {m['train/loss']:.3f}  {_accuracy(m, 'accuracy ')}  {m['train/images_per_second']:.0f} images/s"
        gap = " " if event.kind == "published" else "  "
        self.say(f"{event.job.label}: {detail}{gap + event.text if event.text else ''}")

    def _table(self) -> Table:
        table = Table("member, training", "epoch", "loss", "accuracy", "images/s", "time left", "state", box=None)
        running = [r for r in self.rows.items() if r[1].state == "training"]
        others = [r for r in self.rows.items() if r[1].state != "training"]
        for name, row in (others + running)[-max(8, self.console.height - 6) :]:
            m = row.metrics
            table.add_row(
                name,
                f"{row.epoch}/{row.epochs}",
                f"{m['train/loss']:.3f}" if m else "",
                _accuracy(m),
                f"{m['train/images_per_second']:.0f}" if m else "",
                row.left,
                Text(f"{row.state} {row.text}".strip()),
            )
        return table


def _accuracy(metrics: Epoch, before: str = "") -> str:
    """Return the accuracy on held-out rows, after a word; "" if there is none."""
    accuracy = held_out_metric(metrics, "accuracy")
    return "" if accuracy is None else f"{before}{accuracy:.1%}"
