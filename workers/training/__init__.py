"""Train one network from fresh weights to final ones. Pure of Ray, MLflow and scikit-learn."""
