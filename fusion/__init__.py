"""Combine trained members into one fused model. It trains no member, and imports neither Ray nor MLflow."""
