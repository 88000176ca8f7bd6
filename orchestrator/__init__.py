"""The only layer that sees everything: team file, plan, launching, report, command line."""
