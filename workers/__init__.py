"""One member: its data, network, training, artifact and tracking. Knows nothing of teams or fusion."""
