"""One module per fusion: how it is fitted and how it predicts, on arrays alone."""
