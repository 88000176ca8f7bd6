"""Track a job in MLflow: everything goes to an outbox on the local disk first, and from there to the store."""
