"""Fit every fusion, compare the candidates, and recommend one."""
