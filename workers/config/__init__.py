"""Describe members, trainings, data and resources: frozen, strict, and light to import."""
