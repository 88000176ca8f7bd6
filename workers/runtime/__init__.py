"""Run one job on the machine where it was placed: the Ray actor, the data at hand, the processes of one training."""
