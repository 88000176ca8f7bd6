"""Train one network from fresh to final weights. Imports neither Ray nor MLflow nor scikit-learn."""
