"""Read a team file: YAML with lines, expanded, checked and resolved into a `Team`."""
