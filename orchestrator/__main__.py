"""`python -m orchestrator` is `conclave`."""

from orchestrator.cli import main

main()
