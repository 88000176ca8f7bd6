"""Artifacts in, one fused model out. Never trains a member; knows neither Ray nor MLflow."""
