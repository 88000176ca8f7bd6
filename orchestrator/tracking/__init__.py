"""Track a sweep in MLflow: its runs, the choice of the store, and the tracking server of a team."""
