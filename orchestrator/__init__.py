"""The only layer that sees everything: team file, plan, scheduling, tracking, fusing, report, command line."""
