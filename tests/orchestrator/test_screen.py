"""What is shown of a sweep: whatever an error says stands there as it is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.cli.screen import Screen
from orchestrator.execution.executor import Event
from tests.factories import job

TEXT = "closed by the peer [/gloo/transport/pair.cc:545] [bold]and so on"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_text_with_brackets_is_shown_as_it_is(terminal: bool) -> None:
    with Screen() as screen:
        out = io.StringIO()
        screen.console = Console(file=out, force_terminal=terminal, width=200)
        screen.live = None
        screen.on_event(Event(job("a"), "retry", text=TEXT))
        screen.console.print(screen._table())
    assert out.getvalue().count("[/gloo/transport/pair.cc:545]") == 2
    assert out.getvalue().count("[bold]and so on") == 2
