"""Run one job on its machine: the Ray actor, the local data, and the processes of one training."""
