"""The fusion step: finished trainings in, fitted fusions and one model out; and refits of it."""
