"""The command line: one module per group of commands, and the live screen."""

from orchestrator.cli.entry import app, main

__all__ = ["app", "main"]
