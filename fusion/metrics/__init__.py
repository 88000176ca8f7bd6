"""Scores, calibration and diversity of predictions."""
