"""Files that are whole or not there: atomic writes, checksummed tensors, checkpoints and artifacts."""
