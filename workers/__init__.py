"""One training: its data, network, optimizer, artifact and tracking run. Knows nothing of teams or fusion."""
