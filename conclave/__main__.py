"""Run the command line: `python -m conclave` is `conclave`."""

from orchestrator.cli import main

main()
