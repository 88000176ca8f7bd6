"""Combine trained members: artifacts in, one fused model out. Never trains a member, and knows neither Ray nor MLflow."""
